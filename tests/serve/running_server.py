"""A server in this process, and OpenAI's client for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

PROMPT = "POST: my boss lost cars.\nTL;DR:"


@dataclass
class Running:
    """A server in this process, and the real client of OpenAI."""

    url: str
    service: Any
    server: Any

    def client(self, key: str = "none", retries: int = 0, **headers: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=retries, default_headers=headers, timeout=60
        )

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what happens in other threads."""
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.01)


@contextmanager
def serving(run: Path, **settings: Any) -> Iterator[Running]:
    import uvicorn

    from prlhf.config import ServeConfig
    from prlhf.serve.app import build_app
    from prlhf.serve.run import listening, open_service
    from prlhf.serve.run import settings as of_uvicorn

    config = ServeConfig.model_validate({"device": "cpu", "port": 0, "name": "tiny"} | settings)
    with listening(config) as listener:
        service = open_service(run, config)
        server = uvicorn.Server(of_uvicorn(build_app(service), config))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, server)
        try:
            running.until(lambda: server.started)
            yield running
        finally:
            server.should_exit = True
            thread.join()
