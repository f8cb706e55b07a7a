"""Clients for a server, and the proxy that the environment puts before it."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx2
import openai

from prlhf.errors import PrlhfError, one_line
from prlhf.judge.server import Server

SCHEMES = {"socks": "socks5", "socks5": "socks5", "socks5h": "socks5h", "http": "http", "https": "https"}


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable that names it. Its password is in no message."""

    variable: str
    url: str

    @property
    def shown(self) -> str:
        """The variable and the address without name and password."""
        parts = urlsplit(self.url)
        return f"{self.variable} ({parts.scheme}://{parts.netloc.rpartition('@')[2]})"


def proxy_of(address: str) -> Proxy | None:
    """The proxy that the environment names for `address`; None where there is none, or NO_PROXY exempts it.

    `socks://`, which desktops write, is SOCKS 5. Raises PrlhfError where the value cannot be used.
    """
    parts = urlsplit(address)
    known = getproxies()  # also of the system's settings where it has some
    scheme = next((name for name in (parts.scheme, "all") if known.get(name)), None)
    if scheme is None or exempt(parts.hostname or "", parts.port, known.get("no", "")):
        return None
    name = f"{scheme}_proxy"
    variable = next((one for one in (name, name.upper()) if os.environ.get(one)), name.upper())
    return _usable(variable, known[scheme].strip())


def _usable(variable: str, value: str) -> Proxy:
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
    """Whether `no_proxy` names the host: itself, a domain it is in, a network of addresses, or `*`."""
    host = host.lower()
    for written in (one.strip().lower() for one in no_proxy.split(",")):
        name, colon, number = written.rpartition(":")
        of_a_port = bool(colon) and number.isdecimal() and ":" not in name
        if of_a_port and port is not None and int(number) != port:
            continue
        entry = name if of_a_port else written
        domain = entry.strip("[]").removeprefix("*").lstrip(".")
        if entry == "*" or (domain and (host == domain or host.endswith(f".{domain}"))) or _within(host, entry):
            return True
    return False


def _within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def async_client(server: Server, timeout: float) -> openai.AsyncOpenAI:
    """A client without retries of its own."""
    with_http = {"http_client": openai.DefaultAsyncHttpxClient(**_http(server, httpx2.AsyncHTTPTransport))}
    if server.api_version:
        return openai.AsyncAzureOpenAI(**_azure(server), **with_http, timeout=timeout, max_retries=0)  # type: ignore[call-overload,no-any-return]
    return openai.AsyncOpenAI(**_plain(server), **with_http, timeout=timeout, max_retries=0)  # type: ignore[arg-type]


def sync_client(server: Server, timeout: float, retries: int) -> openai.OpenAI:
    """A client for few and small requests, tried again by the library itself."""
    with_http = {"http_client": openai.DefaultHttpxClient(**_http(server, httpx2.HTTPTransport))}
    if server.api_version:
        return openai.AzureOpenAI(**_azure(server), **with_http, timeout=timeout, max_retries=retries)  # type: ignore[call-overload,no-any-return]
    return openai.OpenAI(**_plain(server), **with_http, timeout=timeout, max_retries=retries)  # type: ignore[arg-type]


def _plain(server: Server) -> dict[str, str]:
    return {"base_url": server.base_url, "api_key": server.key or "none"}


def _azure(server: Server) -> dict[str, str]:
    return {"azure_endpoint": server.base_url, "api_key": server.key, "api_version": server.api_version}


def _http(server: Server, transport: Any) -> dict[str, Any]:
    """By the environment's proxy, or by none; with the environment's certificates in either case."""
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
