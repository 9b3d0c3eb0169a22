"""Refuses requests that reach a server of this machine under somebody else's name.

Knows nothing about what is asked.

A web page of a stranger may let its own name point to 127.0.0.1 (DNS rebinding): for the browser the server then belongs to the
page, which may read and send everything. A server that listens here only and has no keys is therefore asked only by names that
no stranger can have.
"""

import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ernie45.server.errors import ApiError

_OPEN_PATHS = frozenset({"/health"})


def is_loopback(host: str) -> bool:
    """Whether who listens there is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class CheckHost:
    """Middleware: 403 in OpenAI's form under a name that is neither an address, nor of this machine, nor among `allowed`."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str] = ()) -> None:
        self.app = app
        self.allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("path") in _OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("host", "")
        if self._is_ours(_name_of(given)):
            await self.app(scope, receive, send)
            return
        rule = (
            f"Host ({given[:80]!r}) is not a name of this machine; ask by 127.0.0.1 or localhost, or start the server with "
            "--allowed-hosts or with an API key"
        )
        error = ApiError(403, rule, code="host_not_allowed")
        await JSONResponse(error.body, error.status)(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        if "." not in name or name.endswith(".localhost") or name in self.allowed:
            return True  # without a dot it is of the local network, or an IPv6 address
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name_of(host: str) -> str:
    """A Host header without its port."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")
