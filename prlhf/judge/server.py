"""The server that judges: its address, the key that goes to it and nowhere else, and its errors in words."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import httpx2
from typing_extensions import override

from prlhf.errors import PrlhfError
from prlhf.judge.faults import Fault

KEY, AZURE_KEY = "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"  # each also with _FILE: a file that holds it
OPENAI = "https://api.openai.com/v1"
AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com", ".azure-api.net")
LONG = 8  # characters of a key that no text has by chance


@dataclass(frozen=True)
class Server:
    """Where calls go. The key is in no `repr`, no message and no file. With `api_version` it is an Azure resource."""

    base_url: str
    key: str
    api_version: str = ""
    variable: str = KEY  # where the key comes from

    @override
    def __repr__(self) -> str:
        return f"Server({self.shown})"

    @property
    def shown(self) -> str:
        """The address without a name and password that may stand in it."""
        return _shown(self.base_url)

    def redact(self, text: str) -> str:
        """`text` on one line, without the key and without a password of the address."""
        for secret in self._secrets():
            text = text.replace(secret, "[key]")
        return " ".join(text.split())[:300]

    def redact_answer(self, text: str) -> str:
        """The same for what a model wrote, which stays as it is but for keys too long to be a word."""
        for secret in self._secrets():
            text = text.replace(secret, "[key]") if len(secret) >= LONG else text
        return text

    def _secrets(self) -> list[str]:
        password = urlsplit(self.base_url).password or ""
        return [secret for secret in {self.key, password, unquote(password)} if secret]


def server_of(base_url: str | None, api_version: str | None = None) -> Server:
    """The server at `base_url` (default: OpenAI's) with the key from the environment, or from the file it names.

    An Azure resource needs `api_version`, which may stand in the address as well, unless it ends in /openai/v1.
    """
    azure_default = os.environ.get("AZURE_OPENAI_ENDPOINT") if api_version else None
    address = (base_url or azure_default or os.environ.get("OPENAI_BASE_URL") or OPENAI).strip()
    if not _usable(address):
        raise PrlhfError(f"--base-url {_shown(address)!r} is not an address", "write http://HOST:PORT/v1")
    parts = urlsplit(address)
    at_azure = (parts.hostname or "").endswith(AZURE_HOSTS)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    version = api_version or next(iter(parse_qs(parts.query).get("api-version", [])), "")
    if at_azure and not path.endswith("/v1"):
        version = version or os.environ.get("OPENAI_API_VERSION", "")
        if not version:
            hint = "add --api-version, such as 2024-10-21, or end --base-url in /openai/v1"
            raise PrlhfError(f"{_shown(address)} is an Azure resource, which wants a version of its API", hint)
    if version:
        path = path.partition("/openai")[0]
    variable = AZURE_KEY if version or at_azure else KEY
    key, variable = _key(variable)
    if not key and (address == OPENAI or version):
        what = "an Azure resource" if version else "api.openai.com"
        raise PrlhfError(f"no key for {what}", f"set {variable}, or {variable}_FILE to a file that holds it")
    return Server(urlunsplit(parts._replace(path=path, query="", fragment="")), key, version, variable)


def _usable(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
            and bool(httpx2.URL(address).host)
        )
    except (ValueError, httpx2.InvalidURL):
        return False


def _shown(address: str) -> str:
    """Without name, password and query, all of which may be secret."""
    before, slashes, rest = address.partition("://")
    if not slashes:
        return address.partition("?")[0].rpartition("@")[2]
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{before}://{host.rpartition('@')[2]}{slash}{path}"


def _key(variable: str) -> tuple[str, str]:
    """The key and the variable that has it: Azure's own comes before OpenAI's, where `variable` is Azure's."""
    for name in dict.fromkeys((variable, KEY)):
        key, file, source = os.environ.get(name, ""), os.environ.get(f"{name}_FILE"), name
        if not key and file:
            source = file
            try:
                key = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError, ValueError) as error:
                raise PrlhfError(f"cannot read the key file {file} that {name}_FILE names", "fix its path") from error
        if not key.isprintable() or not key.isascii() or " " in key:
            raise PrlhfError(f"the key in {source} holds other than printable ASCII", "copy it again, on one line")
        if key:
            return key, name
    return "", variable


def refused(server: Server, fault: Fault, max_wait: float = math.inf, proxy: str = "") -> PrlhfError:
    """What went wrong, in one line that a user can act on."""
    where, said, status = server.shown, server.redact(fault.said), fault.status
    wait = fault.retry_after
    if fault.passing and wait is not None and wait > max_wait:
        hint = "the same command, run again then, goes on from there; or raise --max-wait"
        return PrlhfError(f"{where} wants to be asked again in {duration(wait)} ({status}: {said})", hint)
    match fault.kind:
        case "page":
            return PrlhfError(
                f"there is no OpenAI-compatible API at {where}: it sends {said}", "is /v1 missing in --base-url?"
            )
        case "empty":
            return PrlhfError(f"{where} sends no valid answer: {said}", "check that it is an OpenAI-compatible API")
        case "filtered":
            return PrlhfError(f"{where} filters the request: {said}", "its pair has no verdict")
        case "timeout":
            return PrlhfError(f"{where} did not answer in time", "raise --timeout or lower --concurrency")
        case "connection":
            by = f" through the proxy of {proxy}" if proxy else ""
            hint = "check the proxy, or exempt the server with NO_PROXY" if proxy else "check --base-url and the server"
            return PrlhfError(f"cannot reach {where}{by}: {said}", hint)
    if status in (401, 403):
        return PrlhfError(f"{where} refuses the key: {said}", f"set {server.variable}, or {server.variable}_FILE")
    if status == 404:
        what = "the deployment's name in --judge-model" if server.api_version else "--judge-model"
        return PrlhfError(f"{where} does not have what was asked for: {said}", f"check {what}, and --base-url")
    if fault.passing:
        return PrlhfError(f"{where} answers {status}: {said}", "run the same command again later")
    return PrlhfError(f"{where} answers {status}: {said}", _hint(fault))


def _hint(fault: Fault) -> str:
    if fault.status in (402, 429):
        return "check the account's credit and limits"
    if fault.status == 407:
        return "the proxy wants a name and password: http://NAME:PASSWORD@HOST:PORT"
    return "the same request would be refused again; --leave-out names what a server does not take"


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `12 minutes`, `60 minutes`, `3 hours`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 3600 * 1000 else "more than 1000 hours"
