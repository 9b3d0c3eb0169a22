"""Downloads over http(s) under limits: size, time, redirects, and which addresses may be reached at all.

Knows nothing about images, videos or who asked.
"""

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpcore
import httpx

from ernie45.config.errors import MediaError

_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = [("User-Agent", "ernie45"), ("Accept", "image/*, video/*, */*;q=0.5"), ("Accept-Encoding", "identity")]


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """connect_seconds: until one connection stands. total_seconds: for all of it, redirects and name look-up included.
    allow_private_addresses: reach loopback, private, link-local and other addresses that are not of the public internet."""

    max_bytes: int
    connect_seconds: float = 5.0
    total_seconds: float = 20.0
    max_redirects: int = 3
    allow_private_addresses: bool = False


def fetch(url: str, limits: FetchLimits, field: str = "url") -> bytes:
    """The body of an http(s) resource. MediaError names the limit that was hit.

    Addresses are checked where the connection is made, on what the name resolved to at that moment, so neither a redirect
    nor a name that changes its address between check and use leads inside. Proxy settings of the environment are not used:
    a proxy would resolve the name itself.
    """
    deadline = time.monotonic() + limits.total_seconds
    backend = _GuardedBackend(limits, deadline, field)
    with httpcore.ConnectionPool(ssl_context=_ssl_context(), network_backend=backend) as pool:
        target = _parse(url, field)
        for _ in range(limits.max_redirects + 1):
            body_or_location = _get(pool, target, limits, field)
            if isinstance(body_or_location, bytes):
                return body_or_location
            target = _parse(str(target.join(body_or_location)), field)
    raise MediaError(f"{field} ({shorten(url)}) redirects more than {limits.max_redirects} times; give the final address")


@cache
def _ssl_context() -> ssl.SSLContext:
    """Certificates of certifi, or those that SSL_CERT_FILE or SSL_CERT_DIR name. Loading them takes 20 ms, so once."""
    return httpx.create_ssl_context()


def shorten(value: Any, length: int = 80) -> str:
    """A value for an error message, cut: data URLs are long."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _parse(url: str, field: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise MediaError(f"{field} ({shorten(url)}) is not a valid address: {error}; correct it") from error
    if target.scheme not in ("http", "https") or not target.host:
        raise MediaError(f"{field} ({shorten(url)}) must begin with http:// or https:// and name a host")
    return target


def _get(pool: httpcore.ConnectionPool, url: httpx.URL, limits: FetchLimits, field: str) -> bytes | str:
    """One request: the body, or the location of a redirect."""
    address = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    timeout = {"connect": limits.connect_seconds, "read": limits.total_seconds, "write": limits.total_seconds}
    headers = [("Host", url.netloc.decode("ascii")), *_HEADERS]
    try:
        with pool.stream("GET", address, headers=headers, extensions={"timeout": timeout}) as response:
            reply = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in reply:
                return reply[b"location"].decode("latin-1")
            if response.status != 200:
                raise MediaError(f"{field} ({shorten(url)}) answered with status {response.status}, not 200; check the address")
            if reply.get(b"content-encoding", b"identity").lower() not in (b"", b"identity"):
                raise MediaError(f"{field} ({shorten(url)}) came compressed although that was not asked for; use another host")
            return _read_body(response.iter_stream(), reply.get(b"content-length", b""), limits, url, field)
    except httpcore.TimeoutException as error:
        raise MediaError(
            f"{field} ({shorten(url)}) took longer than the limit ({limits.connect_seconds:g} s to connect, "
            f"{limits.total_seconds:g} s in all); use a faster host or send the file as a data URL"
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
        raise MediaError(
            f"{field} ({shorten(url)}) cannot be fetched: {error or type(error).__name__}; check the address"
        ) from error


def _read_body(chunks: Iterable[bytes], length: bytes, limits: FetchLimits, url: httpx.URL, field: str) -> bytes:
    body = bytearray()
    too_long = length.isdigit() and int(length) > limits.max_bytes
    for chunk in chunks if not too_long else ():
        body += chunk
        if len(body) > limits.max_bytes:
            too_long = True
            break
    if too_long:
        raise MediaError(f"{field} ({shorten(url)}) is larger than the limit of {limits.max_bytes} bytes; send a smaller file")
    return bytes(body)


class _GuardedBackend(httpcore.NetworkBackend):
    """Connects only to permitted addresses, and lets nothing run past the deadline."""

    def __init__(self, limits: FetchLimits, deadline: float, field: str) -> None:
        self._limits = limits
        self._deadline = deadline
        self._field = field
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        addresses = self._resolve(host, port)
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                left = _left(self._deadline, timeout, httpcore.ConnectTimeout)
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
                return _DeadlineStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
                error = failure
        raise error

    def _resolve(self, host: str, port: int) -> list[str]:
        """Addresses of the host; MediaError if one of them is not public, unless that is allowed."""
        left = _left(self._deadline, self._limits.connect_seconds, httpcore.ConnectTimeout)
        addresses = _look_up(host, port, left)
        inside = [address for address in addresses if not is_public(address)]
        if inside and not self._limits.allow_private_addresses:
            raise MediaError(
                f"{self._field} points to {host} ({inside[0]}), which is not an address of the public internet; use a public "
                "host or a data URL, or allow private addresses where the server is started"
            )
        return addresses


def _look_up(host: str, port: int, seconds: float) -> list[str]:
    """Addresses of a name. The system's look-up cannot be told to hurry, so it gets a thread that is left behind if late."""
    outcome: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            outcome.put(list(dict.fromkeys(str(entry[4][0]) for entry in entries)))
        except (OSError, UnicodeError) as error:
            outcome.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        found = outcome.get(timeout=seconds)
    except queue.Empty as error:
        raise httpcore.ConnectTimeout(f"looking up {host} took too long") from error
    if isinstance(found, Exception):
        raise httpcore.ConnectError(f"{host} cannot be resolved ({found})") from found
    return found


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, looking into IPv4 addresses wrapped in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        teredo = ip.teredo
        wrapped = ip.ipv4_mapped or ip.sixtofour or (teredo[1] if teredo else None) or _nat64(ip)
        if wrapped is not None:
            ip = wrapped
    return ip.is_global and not ip.is_multicast


def _nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in ipaddress.ip_network("64:ff9b::/96") else None


def _left(deadline: float, timeout: float | None, error: type[Exception]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise error("total time is over")
    return left if timeout is None else min(left, timeout)


class _DeadlineStream(httpcore.NetworkStream):
    """A stream whose reads and writes end at the deadline, however many small ones a slow host makes of them."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._deadline, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._deadline, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> "_DeadlineStream":
        left = _left(self._deadline, timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
