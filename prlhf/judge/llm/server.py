"""The server: its address, the key that goes there and nowhere else, its proxy, and its errors in words."""

from __future__ import annotations

import ipaddress
import math
import os
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit
from urllib.request import getproxies

import httpx2
import openai
from typing_extensions import override

from prlhf.errors import PrlhfError, one_line
from prlhf.judge.llm.replies import Fault

KEY, AZURE_KEY = "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"  # or with _FILE, the path of a file with the key
OPENAI = "https://api.openai.com/v1"
AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com", ".azure-api.net")
LONG = 8  # characters of a key that do not occur in a text by chance
SCHEMES = {"socks": "socks5", "socks5": "socks5", "socks5h": "socks5h", "http": "http", "https": "https"}  # of proxies


@dataclass(frozen=True)
class Server:
    """Where requests go; an Azure resource if it has an `api_version`. No `repr`, message or file shows the key."""

    base_url: str
    key: str
    api_version: str = ""
    variable: str = KEY  # the environment variable with the key

    @override
    def __repr__(self) -> str:
        return f"Server({self.shown})"

    @property
    def shown(self) -> str:
        """The address without user name and password."""
        return _shown(self.base_url)

    def redact(self, text: str) -> str:
        """`text` on one line of at most 300 characters, without the key and the password in the address."""
        for secret in self._secrets():
            text = text.replace(secret, "[key]")
        return " ".join(text.split())[:300]

    def redact_answer(self, text: str) -> str:
        """A model's text without the key and the password, unless they are so short that they may be words."""
        for secret in self._secrets():
            text = text.replace(secret, "[key]") if len(secret) >= LONG else text
        return text

    def _secrets(self) -> list[str]:
        password = urlsplit(self.base_url).password or ""
        return [secret for secret in {self.key, password, unquote(password)} if secret]


def server_of(base_url: str | None, api_version: str | None = None) -> Server:
    """The server at `base_url` (default: OpenAI's), with the key from the environment or from a file named there.

    An Azure resource needs `api_version`, here or in the address, unless the address ends in /openai/v1. Raises
    PrlhfError if the address cannot be used, or a key or version is missing.
    """
    azure_default = os.environ.get("AZURE_OPENAI_ENDPOINT") if api_version else None
    address = (base_url or azure_default or os.environ.get("OPENAI_BASE_URL") or OPENAI).strip()
    if not _is_address(address):
        raise PrlhfError(f"--base-url {_shown(address)!r} is not an address", "write http://HOST:PORT/v1")
    parts = urlsplit(address)
    at_azure = (parts.hostname or "").endswith(AZURE_HOSTS)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    version = api_version or next(iter(parse_qs(parts.query).get("api-version", [])), "")
    if at_azure and not path.endswith("/v1"):
        version = version or os.environ.get("OPENAI_API_VERSION", "")
        if not version:
            hint = "add --api-version, such as 2024-10-21, or end --base-url in /openai/v1"
            raise PrlhfError(f"{_shown(address)} is an Azure resource, which needs a version of its API", hint)
    if version:
        path = path.partition("/openai")[0]
    variable = AZURE_KEY if version or at_azure else KEY
    key, variable = _key(variable)
    if not key and (address == OPENAI or version):
        what = "an Azure resource" if version else "api.openai.com"
        raise PrlhfError(f"no key for {what}", f"set {variable}, or {variable}_FILE to a file that holds it")
    return Server(urlunsplit(parts._replace(path=path, query="", fragment="")), key, version, variable)


def _is_address(address: str) -> bool:
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
    """`address` without user name, password and query, any of which may be secret."""
    before, slashes, rest = address.partition("://")
    if not slashes:
        return address.partition("?")[0].rpartition("@")[2]
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{before}://{host.rpartition('@')[2]}{slash}{path}"


def _key(variable: str) -> tuple[str, str]:
    """The key and the variable that holds it: `variable`, or else OpenAI's."""
    for name in dict.fromkeys((variable, KEY)):
        key, file, source = os.environ.get(name, ""), os.environ.get(f"{name}_FILE"), name
        if not key and file:
            source = file
            try:
                key = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError, ValueError) as error:
                raise PrlhfError(f"cannot read the key file {file} that {name}_FILE names", "fix its path") from error
        if not key.isprintable() or not key.isascii() or " " in key:
            raise PrlhfError(f"the key in {source} is not printable ASCII only", "copy it again, on one line")
        if key:
            return key, name
    return "", variable


def refused(server: Server, fault: Fault, max_wait: float = math.inf, proxy: str = "") -> PrlhfError:
    """The error for `fault`, in one line that says what to do."""
    where, message, status = server.shown, server.redact(fault.message), fault.status
    wait = fault.retry_after
    if fault.passing and wait is not None and wait > max_wait:
        hint = "run the same command again then, or raise --max-wait"
        return PrlhfError(f"{where} asks to wait {duration(wait)} ({status}: {message})", hint)
    match fault.kind:
        case "page":
            return PrlhfError(
                f"there is no OpenAI-compatible API at {where}: it sends {message}", "is /v1 missing in --base-url?"
            )
        case "empty":
            return PrlhfError(f"{where} sends no valid answer: {message}", "check that it is an OpenAI-compatible API")
        case "filtered":
            return PrlhfError(f"{where} filters the request: {message}", "its pair has no verdict")
        case "timeout":
            return PrlhfError(f"{where} did not answer in time", "raise --timeout or lower --concurrency")
        case "connection":
            by = f" through the proxy of {proxy}" if proxy else ""
            hint = "check the proxy, or exempt the server with NO_PROXY" if proxy else "check --base-url and the server"
            return PrlhfError(f"cannot reach {where}{by}: {message}", hint)
    if status in (401, 403):
        return PrlhfError(f"{where} refuses the key: {message}", f"set {server.variable}, or {server.variable}_FILE")
    if status == 404:
        what = "the deployment's name in --judge-model" if server.api_version else "--judge-model"
        return PrlhfError(f"{where} does not have that resource: {message}", f"check {what}, and --base-url")
    if fault.passing:
        return PrlhfError(f"{where} answers {status}: {message}", "run the same command again later")
    return PrlhfError(f"{where} answers {status}: {message}", _hint(fault))


def _hint(fault: Fault) -> str:
    if fault.status in (402, 429):
        return "check the account's credit and limits"
    if fault.status == 407:
        return "the proxy needs a user name and password: http://NAME:PASSWORD@HOST:PORT"
    return "the same request would be refused again; leave out what the server does not accept with --leave-out"


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `12 minutes`, `60 minutes`, `3 hours`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 3600 * 1000 else "more than 1000 hours"


# ---- proxies ----


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the environment variable that names it. No message shows its password."""

    variable: str
    url: str

    @property
    def shown(self) -> str:
        """The variable, and the address without user name and password."""
        parts = urlsplit(self.url)
        return f"{self.variable} ({parts.scheme}://{parts.netloc.rpartition('@')[2]})"


def proxy_of(address: str) -> Proxy | None:
    """The proxy that the environment sets for `address`; None if there is none, or NO_PROXY exempts the address.

    `socks://`, which desktop environments set, means SOCKS 5. Raises PrlhfError if the value cannot be used.
    """
    parts = urlsplit(address)
    known = getproxies()  # from the environment, or from the system's settings
    scheme = next((name for name in (parts.scheme, "all") if known.get(name)), None)
    if scheme is None or exempt(parts.hostname or "", parts.port, known.get("no", "")):
        return None
    name = f"{scheme}_proxy"
    variable = next((one for one in (name, name.upper()) if os.environ.get(one)), name.upper())
    return _checked_proxy(variable, known[scheme].strip())


def _checked_proxy(variable: str, value: str) -> Proxy:
    url = value if "://" in value else f"http://{value}"
    hint = "write http://HOST:PORT or socks5://HOST:PORT, or exempt the server with NO_PROXY"
    kind, _, rest = url.partition("://")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0) and bool(httpx2.URL(url).host)
    except (ValueError, httpx2.InvalidURL):
        usable = False
    if not usable or kind.lower() not in SCHEMES:
        raise PrlhfError(f"{variable} is not a proxy that can be used: {kind}://{rest.rpartition('@')[2]}", hint)
    proxy = Proxy(variable, f"{SCHEMES[kind.lower()]}://{rest}")
    if "socks" in kind.lower() and find_spec("socksio") is None:
        raise PrlhfError(
            f"the proxy of {proxy.shown} needs the package socksio",
            "pip install socksio, unset the variable, or exempt the server with NO_PROXY",
        )
    return proxy


def exempt(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether `no_proxy` covers the host: by name, domain, network of addresses, or `*`."""
    host = host.lower()
    for listed in (one.strip().lower() for one in no_proxy.split(",")):
        name, colon, number = listed.rpartition(":")
        has_port = bool(colon) and number.isdecimal() and ":" not in name
        if has_port and port is not None and int(number) != port:
            continue
        entry = name if has_port else listed
        domain = entry.strip("[]").removeprefix("*").lstrip(".")
        if entry == "*" or (domain and (host == domain or host.endswith(f".{domain}"))) or _within(host, entry):
            return True
    return False


def _within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


# ---- clients ----


def async_client(server: Server, timeout: float) -> openai.AsyncOpenAI:
    """A client that does not retry by itself. `timeout` is in seconds."""
    with_http = {"http_client": openai.DefaultAsyncHttpxClient(**_http(server, httpx2.AsyncHTTPTransport))}
    if server.api_version:
        return openai.AsyncAzureOpenAI(**_azure(server), **with_http, timeout=timeout, max_retries=0)  # type: ignore[call-overload,no-any-return]
    return openai.AsyncOpenAI(**_plain(server), **with_http, timeout=timeout, max_retries=0)  # type: ignore[arg-type]


def sync_client(server: Server, timeout: float, retries: int) -> openai.OpenAI:
    """A client that retries by itself, for few requests. `timeout` is in seconds."""
    with_http = {"http_client": openai.DefaultHttpxClient(**_http(server, httpx2.HTTPTransport))}
    if server.api_version:
        return openai.AzureOpenAI(**_azure(server), **with_http, timeout=timeout, max_retries=retries)  # type: ignore[call-overload,no-any-return]
    return openai.OpenAI(**_plain(server), **with_http, timeout=timeout, max_retries=retries)  # type: ignore[arg-type]


def _plain(server: Server) -> dict[str, str]:
    return {"base_url": server.base_url, "api_key": server.key or "none"}


def _azure(server: Server) -> dict[str, str]:
    return {"azure_endpoint": server.base_url, "api_key": server.key, "api_version": server.api_version}


def _http(server: Server, transport: Any) -> dict[str, Any]:
    """The arguments of the HTTP client: the proxy if there is one; certificates come from the environment."""
    proxy = proxy_of(server.base_url)
    try:
        if proxy is not None:
            ssl.create_default_context()
            return {"proxy": proxy.url}
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
        return {"transport": transport(limits=limits)}
    except (OSError, ssl.SSLError) as error:
        raise PrlhfError(
            f"cannot load the certificates to trust: {one_line(error)}", "check SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error
