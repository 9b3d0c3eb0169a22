"""Downloads over http(s) under limits: size, time, redirects, and which addresses may be reached at all.

Knows nothing about images, videos or who asked.
"""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import httpcore
import httpx

from ernie45.config.errors import MediaAccessError, MediaError, MediaSizeError, MediaTimeoutError
from ernie45.processor.addresses import AddressRules, ForbiddenAddressError, Resolver
from ernie45.processor.byte_budget import ByteBudget, ByteShare

_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = [("User-Agent", "ernie45"), ("Accept", "image/*, video/*, */*;q=0.5"), ("Accept-Encoding", "identity")]
_KEEP_ALIVE_SECONDS = 15.0
_SNIFFED_BYTES = 512

T = TypeVar("T")
Sniff = Callable[[bytes], object]


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """What downloads may cost and reach.

    connect_seconds     until one connection stands, look-up of the name included.
    total_seconds       for all of one download, redirects included; once more for the wait until it may begin.
    allow_private_addresses  reach loopback, private, link-local and other addresses that are not of the public internet.
    allowed_hosts       names, addresses and networks (10.1.0.0/16) that may be reached although they are not public.
    max_connections, max_connections_per_host  at once; a host that never answers so holds up its own pictures first.
    max_bytes_in_flight  of all bodies that are being read or not used yet; the next one waits.
    """

    connect_seconds: float = 5.0
    total_seconds: float = 20.0
    max_redirects: int = 3
    allow_private_addresses: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_connections: int = 64
    max_connections_per_host: int = 8
    max_bytes_in_flight: int = 2**30


def fetch(url: str, max_bytes: int, limits: FetchLimits, field: str = "url") -> bytes:
    """`Fetcher.fetch` for callers without an event loop of their own; it may also be called where one runs (a notebook)."""

    async def fetch_once() -> bytes:
        fetcher = Fetcher(limits)
        try:
            return await fetcher.fetch(url, max_bytes, field)
        finally:
            await fetcher.close()

    return run_alone(fetch_once())


def run_alone(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop of its own: in this thread, or in another if this one's loop is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((asyncio.run(coroutine), None))
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


class Fetcher:
    """One pool of connections, for one event loop.

    Addresses are checked where a connection is made, on what the name resolved to at that moment, and the connection goes to
    the address that was checked; so neither a redirect nor a name that changes its address between check and use leads
    inside. Proxy settings of the environment are not used: a proxy would resolve the name itself.
    """

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            max_connections=limits.max_connections,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
            network_backend=_GuardedBackend(limits),
        )
        self._free = asyncio.Semaphore(limits.max_connections)
        self._free_of_host: dict[bytes, tuple[asyncio.Semaphore, list[None]]] = {}
        self._budget = ByteBudget(limits.max_bytes_in_flight)

    async def fetch(self, url: str, max_bytes: int, field: str = "url", sniff: Sniff | None = None) -> bytes:
        """The body of an http(s) resource. MediaError names the limit that was hit.

        sniff: gets the first bytes as soon as they are there and raises if they cannot be what was asked for.
        """
        async with self.fetched(url, max_bytes, field, sniff) as body:
            return body

    @asynccontextmanager
    async def fetched(self, url: str, max_bytes: int, field: str = "url", sniff: Sniff | None = None) -> AsyncIterator[bytes]:
        """The same for a caller who keeps the body for a while: it counts as in flight until the end of the block."""
        target = _parse(url, field)
        share = ByteShare(self._budget)
        transfer = _Transfer(self._pool, self._limits, max_bytes, field, sniff, share)
        try:
            async with self._slot(target.raw_host, url, field):
                body = await self._in_time(transfer, target, share)
            yield body
        finally:
            share.give_back()

    async def _in_time(self, transfer: "_Transfer", target: httpx.URL, share: ByteShare) -> bytes:
        """The body. The time in which a download had to wait for others is not its own."""
        loop = asyncio.get_running_loop()
        start, task = loop.time(), asyncio.ensure_future(transfer.run(target))
        try:
            while not task.done():
                left = self._limits.total_seconds - (loop.time() - start - share.waited_s)
                if left <= 0:
                    raise transfer.too_late(target)
                await asyncio.wait({task}, timeout=left)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    @asynccontextmanager
    async def _slot(self, host: bytes, url: str, field: str) -> AsyncIterator[None]:
        """One of the connections, first of those for this host. Waiting is not part of a download's own time."""
        semaphore, users = self._free_of_host.setdefault(host, (asyncio.Semaphore(self._limits.max_connections_per_host), []))
        users.append(None)
        taken: list[asyncio.Semaphore] = []

        async def take() -> None:
            for each in (semaphore, self._free):
                await each.acquire()
                taken.append(each)

        try:
            try:
                await asyncio.wait_for(take(), self._limits.total_seconds)
            except asyncio.TimeoutError as error:
                raise MediaTimeoutError(
                    f"{field} ({shorten(url)}) waited {self._limits.total_seconds:g} s for other downloads to end; try again "
                    "later or send the file as a data URL"
                ) from error
            yield
        finally:
            for each in taken:
                each.release()
            users.pop()
            if not users:
                del self._free_of_host[host]


class _Transfer:
    """One download, from the first address to the body behind the last redirect."""

    def __init__(
        self,
        pool: httpcore.AsyncConnectionPool,
        limits: FetchLimits,
        max_bytes: int,
        field: str,
        sniff: Sniff | None,
        share: ByteShare,
    ) -> None:
        self._pool = pool
        self._share = share
        self._limits = limits
        self._max_bytes = max_bytes
        self._field = field
        self._sniff = sniff

    async def run(self, target: httpx.URL) -> bytes:
        first = target
        for _ in range(self._limits.max_redirects + 1):
            body_or_location = await self._get(target)
            if isinstance(body_or_location, bytes):
                return body_or_location
            target = _parse(body_or_location, self._field, base=target)
        raise self._error(first, f"redirects more than {self._limits.max_redirects} times; give the final address")

    def too_late(self, url: httpx.URL | str) -> MediaTimeoutError:
        return MediaTimeoutError(
            f"{self._field} ({shorten(url)}) took longer than the limit ({self._limits.connect_seconds:g} s to connect, "
            f"{self._limits.total_seconds:g} s in all); use a faster host or send the file as a data URL"
        )

    async def _get(self, url: httpx.URL) -> bytes | str:
        """One request: the body, or the location of a redirect."""
        try:
            return await self._once(url)
        except (httpcore.RemoteProtocolError, httpcore.ReadError):
            pass  # a kept connection that the host has closed meanwhile looks like this: ask once more, on another
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
            raise self._unreachable(url, error) from error
        try:
            return await self._once(url)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
            raise self._unreachable(url, error) from error

    async def _once(self, url: httpx.URL) -> bytes | str:
        address = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        total = self._limits.total_seconds
        timeout = {"connect": self._limits.connect_seconds, "read": total, "write": total, "pool": total}
        headers = [("Host", url.netloc.decode("ascii")), *_HEADERS]
        try:
            async with self._pool.stream("GET", address, headers=headers, extensions={"timeout": timeout}) as response:
                reply = {name.lower(): value for name, value in response.headers}
                if response.status in _REDIRECTS and b"location" in reply:
                    return reply[b"location"].decode("latin-1")
                if response.status != 200:
                    raise self._error(url, f"answered with status {response.status}, not 200; check the address")
                if reply.get(b"content-encoding", b"identity").lower() not in (b"", b"identity"):
                    raise self._error(url, "came compressed although that was not asked for; use another host")
                return await self._read_body(response.aiter_stream(), reply.get(b"content-length", b""), url)
        except httpcore.TimeoutException as error:
            raise self.too_late(url) from error
        except ForbiddenAddressError as error:
            raise MediaAccessError(
                f"{self._field} points to {error.host} ({error.address}), which is not an address of the public internet; use "
                "a public host or a data URL, or allow the host where the server is started"
            ) from error

    async def _read_body(self, chunks: AsyncIterator[bytes], length: bytes, url: httpx.URL) -> bytes:
        body = bytearray()
        too_large = MediaSizeError(
            f"{self._field} ({shorten(url)}) is larger than the limit of {self._max_bytes} bytes; send a smaller file"
        )
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise too_large
        # HTTP holds a body to the length that was declared.
        await self._share.take(int(length[:20]) if length.isdigit() else self._max_bytes)
        sniff = self._sniff
        async for chunk in chunks:
            body += chunk
            if len(body) > self._max_bytes:
                raise too_large
            if sniff is not None and len(body) >= _SNIFFED_BYTES:
                sniff(bytes(body[:_SNIFFED_BYTES]))
                sniff = None
        self._share.shrink(len(body))
        return bytes(body)

    def _unreachable(self, url: httpx.URL, error: Exception) -> MediaError:
        return self._error(url, f"cannot be fetched: {error or type(error).__name__}; check the address")

    def _error(self, url: httpx.URL, rule: str) -> MediaError:
        return MediaError(f"{self._field} ({shorten(url)}) {rule}")


@cache
def _ssl_context() -> ssl.SSLContext:
    """Certificates of certifi, or those that SSL_CERT_FILE or SSL_CERT_DIR name. Loading them takes 20 ms, so once."""
    return httpx.create_ssl_context()


def shorten(value: Any, length: int = 80) -> str:
    """A value for an error message, cut: data URLs are long."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _parse(url: str, field: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        target = httpx.URL(url) if base is None else base.join(url)
        named = bool(target.host)  # which is decoded only here
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise MediaError(f"{field} ({shorten(url)}) is not a valid address: {error}; correct it") from error
    if target.scheme not in ("http", "https") or not named:
        raise MediaError(f"{field} ({shorten(url)}) must begin with http:// or https:// and name a host")
    return target


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to permitted addresses: looks a name up, checks what it found, and connects to exactly that."""

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._rules = AddressRules(limits.allow_private_addresses, limits.allowed_hosts)
        self._resolver = Resolver()
        self._inner: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # type: ignore[assignment]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await asyncio.wait_for(self._connect(host, port), self._limits.connect_seconds)
        except asyncio.TimeoutError as error:
            raise httpcore.ConnectTimeout(f"connecting to {host} took too long") from error

    async def _connect(self, host: str, port: int) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolver.look_up(host, port)
        self._rules.check(host, addresses)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for index, address in enumerate(addresses):
            share = self._limits.connect_seconds / (len(addresses) - index)  # a dead one leaves time for the next
            try:
                return await self._inner.connect_tcp(address, port, share)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure
