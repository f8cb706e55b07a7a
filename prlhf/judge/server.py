"""The server that judges: its address, the key that goes to it and nowhere else, and its errors in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import openai
from typing_extensions import override

from prlhf.errors import PrlhfError

KEY, KEY_FILE = "OPENAI_API_KEY", "OPENAI_API_KEY_FILE"
OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Server:
    """Where calls go. The key is in no `repr`, no message and no file."""

    base_url: str
    key: str

    @override
    def __repr__(self) -> str:
        return f"Server({self.shown})"

    @property
    def shown(self) -> str:
        """The address without a name and password that may stand in it."""
        parts = urlsplit(self.base_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def redact(self, text: str) -> str:
        """`text` on one line, without the key and without a password of the address."""
        secrets = [self.key, urlsplit(self.base_url).password or ""]
        for secret in secrets:
            text = text.replace(secret, "[key]") if secret else text
        return " ".join(text.split())[:300]


def server_of(base_url: str | None) -> Server:
    """The server at `base_url` (default: OpenAI's) with the key from the environment, or from the file it names."""
    address = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PrlhfError(f"--base-url {address!r} is no address", "write http://HOST:PORT/v1")
    key, file = os.environ.get(KEY, ""), os.environ.get(KEY_FILE)
    if not key and file:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PrlhfError(f"cannot read the key file {file} that {KEY_FILE} names", "mend its path") from error
    if not key.isprintable() or not key.isascii():
        raise PrlhfError(
            f"the key in {KEY if os.environ.get(KEY) else file} holds other than printable ASCII", "mend it"
        )
    if not key and address == OPENAI:
        raise PrlhfError("no key for api.openai.com", f"set {KEY}, or {KEY_FILE} to a file that holds it")
    return Server(address.rstrip("/"), key)


def refused(server: Server, error: Exception) -> PrlhfError:
    """What went wrong, in one line that a user can act on."""
    where, said = server.shown, server.redact(str(getattr(error, "message", error)))
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return PrlhfError(f"{where} refuses the key: {said}", f"set {KEY}, or {KEY_FILE}")
        case openai.NotFoundError():
            return PrlhfError(f"{where} has not what was asked for: {said}", "check --judge-model and --base-url")
        case openai.APITimeoutError():
            return PrlhfError(f"{where} did not answer in time", "raise --timeout or lower --concurrency")
        case openai.APIConnectionError():
            why = server.redact(str(list(causes(error))[-1]))
            return PrlhfError(f"cannot reach {where}: {why}", "check --base-url and the server")
        case openai.APIStatusError():
            own = error.body.get("message") if isinstance(error.body, dict) else None
            busy = error.status_code >= 500 or error.status_code == 429
            hint = "run again later" if busy else "the same request would be refused again: mend it"
            return PrlhfError(f"{where} answers {error.status_code}: {server.redact(str(own or said))}", hint)
    return PrlhfError(f"{where} sends no valid answer: {said}", "check that --base-url is an OpenAI-compatible API")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
