"""API keys: where they come from, and the door that asks for one.

Knows nothing about what is behind the door.

A key is kept as its hash only, compared in constant time with all of them, and is in no message, log line or repr.
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ernie45.config.errors import ConfigError
from ernie45.server.errors import ApiError

# Ours, FastDeploy's and vLLM's: comma lists of keys. A server that moves here with its environment must not stand open.
ENVIRONMENT = ("ERNIE45_API_KEY", "FD_API_KEY", "VLLM_API_KEY")
# What needs no key: whether the process lives, and the two pages, which ask for one before they ask for anything else.
OPEN_PATHS = frozenset({"/health", "/", "/dashboard"})
OPEN_FOLDER = "/web/"  # scripts and style of the pages


class ApiKeys:
    """The keys that open the server; without any, it is open."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple({_digest(key): None for key in keys})

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"ApiKeys({len(self)} keys)"

    def accept(self, authorization: str | None) -> bool:
        """Whether an Authorization header, `Bearer KEY`, has one of the keys. Takes as long whichever it is, if any."""
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").strip().partition(" ")
        digest = _digest(key.strip())
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found and scheme.lower() == "bearer"


def load_keys(given: Sequence[str], file: str | Path | None, environ: Mapping[str, str]) -> ApiKeys:
    """What `read_keys` finds, as a lock."""
    return ApiKeys(read_keys(given, file, environ))


def read_keys(given: Sequence[str], file: str | Path | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Keys from flags, from a file (one a line; # begins a comment) and from the environment (comma lists), all together.

    ConfigError, without the key, for one that no Authorization header could carry, and for a file that gives none.
    """
    sources = [("api_key", list(given))]
    if file is not None:
        sources.append((f"api_key_file ({str(file)!r})", _read_lines(Path(file))))
    sources += [(name, [key.strip() for key in environ[name].split(",")]) for name in ENVIRONMENT if environ.get(name)]
    keys = []
    for source, found in sources:
        for number, key in enumerate(found, 1):
            if not key or not all("!" <= character <= "~" for character in key):
                rule = "must be of visible ASCII characters, with no space, and not empty"
                raise ConfigError(f"{source}, key {number} (not shown) {rule}; write another")
            keys.append(key)
    return tuple(keys)


def _read_lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"api_key_file ({str(file)!r}) cannot be read: {reason}; name a text file, one key a line") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:  # an open server is not what somebody wants who names a file of keys
        raise ConfigError(f"api_key_file ({str(file)!r}) must have at least one key, one a line; add one or leave it out")
    return keys


class RequireKey:
    """Middleware: 401 in OpenAI's form without a key, on every path but the open ones."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, open_paths: frozenset[str] = OPEN_PATHS) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path in self.open_paths or path.startswith(OPEN_FOLDER):
            await self.app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        if self.keys.accept(authorization):
            await self.app(scope, receive, send)
            return
        what = "is missing" if authorization is None else "(not shown) is not one that this server knows"
        error = ApiError(401, f"the API key {what}; send the header 'Authorization: Bearer KEY'", code="invalid_api_key")
        await JSONResponse(error.body, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
