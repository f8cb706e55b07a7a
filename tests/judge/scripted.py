"""A local server of chat completions that replies as a test wants."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class Reply:
    """A reply: JSON, or `raw` bytes instead; `cut` closes the connection halfway."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    cut: bool = False


Script = Callable[[Body, int], Reply]  # the request's body, and how many came before it


class Scripted:
    """`requests` holds the bodies of all chat completions, `other` (method, path, content) of everything else."""

    def __init__(self, script: Script, models: list[str] | None = None) -> None:
        self.script, self.models = script, models
        self.requests: list[Body] = []
        self.keys: list[str] = []
        self.heads: list[dict[str, str]] = []  # of each request: `path`, and the headers in lower case
        self.other: list[tuple[str, str, bytes]] = []
        self.others: Callable[[str, str, bytes], Reply] = lambda method, path, content: Reply({"error": "no"}, 404)
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0
        self.url = ""


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients disconnect in these tests; that needs no report."""


@contextmanager
def serving(script: Script, models: list[str] | None = None) -> Iterator[Scripted]:
    state = Scripted(script, models)
    server = Quiet(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _handler(state: Scripted) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self.path.partition("?")[0].endswith("/chat/completions"):
                self._other("POST", content)
                return
            body = json.loads(content)
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.heads.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
                state.keys.append(self.headers.get("Authorization", ""))
                state.busy += 1
                state.most_busy = max(state.most_busy, state.busy)
            try:
                self._send(state.script(body, number))
            finally:
                with state.lock:
                    state.busy -= 1

        def do_GET(self) -> None:
            if self.path.endswith("/models") and state.models is not None:
                self._send(
                    Reply({"object": "list", "data": [{"id": name, "object": "model"} for name in state.models]})
                )
            else:
                self._other("GET", b"")

        def _other(self, method: str, content: bytes) -> None:
            with state.lock:
                state.other.append((method, self.path, content))
            self._send(state.others(method, self.path, content))

        def _send(self, reply: Reply) -> None:
            content = reply.raw if reply.raw is not None else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if reply.cut else content)
            if reply.cut:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


# ---- what a server says ----


def said(text: str | None, **choice: Any) -> Reply:
    """A chat completion with this content."""
    message = {"role": "assistant", "content": text, **choice}
    return Reply(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    )


def error(status: int, message: str = "no", headers: dict[str, str] | None = None, **more: Any) -> Reply:
    return Reply({"error": {"message": message, **more}}, status, headers or {})


# ---- what a judge on the other side can read ----


def labels_of(body: Body) -> list[str]:
    """The codes of the first response, the second, and a tie."""
    names: list[str] = body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"]
    return names


def texts_of(body: Body) -> dict[str, str]:
    """Code -> response."""
    content = body["messages"][-1]["content"]
    found = re.findall(r"\[(\w{16}) response (\w+)\]\n(.*?)\n\[\1 end\]", content, re.DOTALL)
    return {code: text for _, code, text in found}


def verdict(body: Body, code: str, reason: str = "because") -> Reply:
    return said(json.dumps({"reason": reason, "verdict": code}))


def prefers(key: Callable[[str], Any]) -> Script:
    """A judge that chooses the response with the higher `key` in either order; equal ones tie."""

    def script(body: Body, number: int) -> Reply:
        texts = texts_of(body)
        first, second, tie = labels_of(body)
        a, b = key(texts.get(first, "")), key(texts.get(second, ""))
        return verdict(body, first if a > b else second if b > a else tie)

    return script


def always_first(body: Body, number: int) -> Reply:
    return verdict(body, labels_of(body)[0])
