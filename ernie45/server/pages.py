"""The chat page and the sample pictures it offers.

Knows nothing about models; the page talks to the same API as everyone.
"""

import base64
import hashlib
import json
import re
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from ernie45.server.routes.openapi import answer_docs

_WEB = Path(__file__).parent / "web"
_ASSETS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
# Pages that have files of their own. Nothing may turn text into markup, and a picture or video is the server's or the user's.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
SAMPLES = Path(__file__).parent.parent / "assets" / "samples"
_SAMPLE_FIELDS = ("file", "question", "answer", "kind")


def add_pages(app: FastAPI, _: object) -> None:
    """GET / is the page, /web/{file} its scripts and style, /samples lists pictures, /samples/{file} is one."""
    page = (_WEB / "index.html").read_bytes()
    assets = {path.name: path.read_bytes() for path in sorted(_WEB.iterdir()) if path.suffix in _ASSETS}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        headers = _HEADERS | {"Content-Security-Policy": _POLICY}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/web/{file}", include_in_schema=False)
    async def asset(file: str) -> Response:
        if file not in assets:
            raise HTTPException(404)
        return Response(assets[file], media_type=_ASSETS[Path(file).suffix], headers=_HEADERS)

    @app.get("/samples", summary="Sample pictures with questions", responses=answer_docs(app, (405, 500)))
    async def samples() -> JSONResponse:
        return JSONResponse(read_samples())

    @app.get(
        "/samples/{file}",
        summary="One sample picture",
        response_class=FileResponse,
        responses=answer_docs(app, (404, 405, 500)),
    )
    async def sample(file: str) -> Response:
        if file not in (entry["file"] for entry in read_samples()):
            raise HTTPException(404)
        return FileResponse(SAMPLES / file)


def read_samples() -> list[dict[str, str]]:
    """The entries of samples.json whose picture is there; none if there is no such file."""
    index = SAMPLES / "samples.json"
    if not index.is_file():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))
    return [{name: entry[name] for name in _SAMPLE_FIELDS} for entry in entries if (SAMPLES / entry["file"]).is_file()]


def content_policy(page: str) -> str:
    """Lets the page run its own script and style and nothing else, and talk to its own server only."""
    hashes = {tag: _hash(re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)) for tag in ("script", "style")}
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(match: re.Match[str] | None) -> str:
    assert match is not None, "the page must have one script and one style without attributes"
    return "'sha256-" + base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode() + "'"
