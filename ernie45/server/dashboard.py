"""GET /dashboard: one page that draws what /metrics says, live, without a server beside it.

Knows nothing about metrics; the page reads the same text as Prometheus does, with the same key.
"""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response

from ernie45.server.pages import content_policy

PAGE = Path(__file__).parent / "web" / "dashboard.html"


def add_dashboard(app: FastAPI) -> None:
    """The page itself holds no data and is open; it asks for a key where the server wants one."""
    page = PAGE.read_bytes()
    headers = {"Content-Security-Policy": content_policy(page.decode()), "Cache-Control": "no-cache"}

    @app.get("/dashboard", include_in_schema=False)
    async def dashboard() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)
