"""A hub on the loopback address that answers like the real one, with its status codes and X-Error-Code headers.

It serves models and data sets, and the folders in them, and takes commits of small files.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

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
        parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[2:] if api else parts[1:] if parts[0] == "datasets" else parts
        name, rest = "/".join(parts[:2]), parts[2:]  # rest: [tree, REVISION, …], [resolve, REVISION, *PATH], …
        if name in REFUSALS:
            self.answer(REFUSALS[name])
        elif name not in self.folders:
            self.answer((404, "RepoNotFound", "Repository not found"))
        elif "tree" in rest and not self.folders[name].joinpath(*rest[2:]).is_dir():
            self.answer((404, "EntryNotFound", "Entry not found"))
        elif api:
            self.send(json.dumps(self.listing(name, rest)).encode(), {})
        elif (path := self.folders[name].joinpath(*rest[2:])).is_file():
            self.send(path.read_bytes(), {"ETag": f'"{path.name}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer((404, "EntryNotFound", "Entry not found"))

    def listing(self, name: str, rest: list[str]) -> object:
        """Of `tree` what is in a folder, else the names of all files."""
        folder = self.folders[name]
        if "tree" in rest:
            found = folder.joinpath(*rest[2:])
            paths = found.rglob("*") if "recursive=true" in self.path.lower() else found.iterdir()
        else:
            files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        return [
            {
                "type": "directory" if path.is_dir() else "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": COMMIT,
            }
            for path in sorted(paths)
        ]

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Make a repository, say how files are to be sent, and take a commit with the files in it."""
        parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts[1:] == ["repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            if name in REFUSALS:
                self.answer(REFUSALS[name])
                return
            self.folders[name].mkdir(exist_ok=True)
            (self.folders[name].parent / "made.json").write_text(json.dumps(asked))
            self.send(json.dumps({"url": f"http://{self.headers['Host']}/{name}"}).encode(), {})
        elif parts[-2:-1] == ["preupload"]:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.send(json.dumps({"files": files}).encode(), {})
        elif parts[-2:-1] == ["commit"]:
            folder = self.folders["/".join(parts[2:4])]
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    path = folder / line["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            url = f"http://{self.headers['Host']}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
            self.send(json.dumps({"success": True, "commitOid": COMMIT, "commitUrl": url}).encode(), {})
        else:  # the check of a card
            self.send(b'{"errors": [], "warnings": []}', {})

    def send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for header, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
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
