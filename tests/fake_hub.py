"""A hub on the loopback address that answers like the real one, with its status codes and X-Error-Code headers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 39 + "1"
REFUSALS = {  # repository -> status, X-Error-Code, X-Error-Message
    "org/gated": (403, "GatedRepo", "Access to this model is restricted."),
    "org/gated-no-login": (401, "GatedRepo", "Access to this model is restricted."),
    "org/missing": (404, "RepoNotFound", "Repository not found"),
    "org/private": (401, "RepoNotFound", "Invalid username or password."),
    "org/disabled": (403, None, "Access to this resource is disabled."),
    "org/busy": (429, None, "Too many requests"),
    "org/broken": (500, None, "Internal error"),
    "org/forbidden": (403, None, "Forbidden"),
}


@contextmanager
def fake_hub(folders: dict[str, Path]) -> Iterator[str]:
    """A context with the address of a hub that serves `folders` (repository -> files) and refuses REFUSALS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"folders": folders}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    folders: dict[str, Path]

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[2:] if api else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in REFUSALS:
            self.answer(REFUSALS[name])
        elif name not in self.folders:
            self.answer((404, "RepoNotFound", "Repository not found"))
        elif api:
            names = sorted(path.name for path in self.folders[name].iterdir())
            listing: object = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            if "tree" in rest:
                listing = [{"type": "file", "path": n, "size": 1, "oid": COMMIT} for n in names]
            self.send(json.dumps(listing).encode(), {})
        elif (path := self.folders[name] / rest[-1]).is_file():
            self.send(path.read_bytes(), {"ETag": f'"{path.name}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer((404, "EntryNotFound", "Entry not found"))

    do_HEAD = do_GET

    def send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for header, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def answer(self, refusal: tuple[int, str | None, str]) -> None:
        status, code, message = refusal
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass
