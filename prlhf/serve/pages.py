"""The page at `/`: choose a user, talk, and choose between two responses. Its files need nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import FastAPI, Request, Response

FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/person.js": ("person.js", "text/javascript"),
}


def add_page(app: FastAPI) -> None:
    """Let `app` answer with the files of the page."""
    for path, (name, kind) in FILES.items():
        app.add_route(path, _file(name, kind), ["GET"], include_in_schema=False)


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = resources.files("prlhf.serve").joinpath("page", name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer
