"""One pool of connections for many requests: its bounds, what it keeps, and what it may reach."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from ernie45.config.errors import ConfigError, MediaAccessError, MediaError, MediaFormatError, MediaTimeoutError
from ernie45.processor.addresses import AddressRules, ForbiddenAddressError, Resolver, is_public
from ernie45.processor.fetch import Fetcher, FetchLimits, fetch

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Host:
    """A server on this machine that counts its connections; `answer` is asked once a request."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.num_connections = self.num_open = self.most_open = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self.answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.num_open -= 1
            writer.close()

    def url(self, name: str = "127.0.0.1") -> str:
        return f"http://{name}:{self.port}/"


@asynccontextmanager
async def hosted(answer: Answer) -> AsyncIterator[Host]:
    host = Host(answer)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()


@asynccontextmanager
async def fetching(**options) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(FetchLimits(**{"total_seconds": 5.0, "allow_private_addresses": True, **options}))
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def ok(reader, writer) -> None:
    writer.write(OK)


async def never(reader, writer) -> None:
    await asyncio.sleep(30)


async def slowly(reader, writer) -> None:
    await asyncio.sleep(0.05)
    writer.write(OK)


def test_many_pictures_at_once_share_a_few_connections():
    async def main():
        async with hosted(slowly) as host, fetching(max_connections_per_host=3) as fetcher:
            assert await asyncio.gather(*(fetcher.fetch(host.url(), 10) for _ in range(12))) == [b"ok"] * 12
            assert host.most_open == 3
            assert host.num_connections == 3  # kept, not opened anew

    asyncio.run(main())


@pytest.mark.parametrize("declared", [True, False])
def test_bytes_in_flight_are_bounded_and_who_waits_does_not_fail(declared: bool):
    """A body of declared length counts for that, another for the limit of its kind; until it is used."""
    head = b"Content-Length: 100\r\n" if declared else b"Connection: close\r\n"

    async def body(reader, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + b"x" * 100)
        if not declared:
            writer.close()

    async def main():
        num_held = most_held = 0
        async with hosted(body) as host, fetching(max_bytes_in_flight=250, total_seconds=0.5) as fetcher:

            async def use() -> int:
                nonlocal num_held, most_held
                async with fetcher.fetched(host.url(), 120 if declared else 100) as data:
                    num_held += 1
                    most_held = max(most_held, num_held)
                    await asyncio.sleep(0.3)  # of six, the last waits longer than a download may take
                    num_held -= 1
                    return len(data)

            assert await asyncio.gather(*(use() for _ in range(6))) == [100] * 6
            assert most_held == 2
            waiting = [asyncio.create_task(use()) for _ in range(4)]
            await asyncio.sleep(0.1)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert await fetcher.fetch(host.url(), 10**6) == b"x" * 100  # more than all there is: it gets all
            assert fetcher._budget.num_free == 250

    asyncio.run(main())


def test_a_host_that_never_answers_holds_up_only_its_own():
    async def main():
        limits = {"max_connections_per_host": 2, "max_connections": 3, "total_seconds": 1.0}
        async with hosted(never) as dead, hosted(ok) as alive, fetching(**limits) as fetcher:
            stuck = [asyncio.create_task(fetcher.fetch(dead.url("localhost"), 10)) for _ in range(5)]
            await asyncio.sleep(0.1)
            for _ in range(3):  # far below the time limit: nobody waits for the dead host
                assert await asyncio.wait_for(fetcher.fetch(alive.url(), 10), 0.7) == b"ok"
            failures = await asyncio.gather(*stuck, return_exceptions=True)
            assert all(isinstance(failure, MediaTimeoutError) for failure in failures), failures
            assert dead.most_open == 2
            assert await fetcher.fetch(alive.url("localhost"), 10) == b"ok"  # the slots of that name are free again
            assert not fetcher._free_of_host

    asyncio.run(main())


def test_a_connection_that_the_host_closes_after_an_answer_is_replaced():
    async def ok_then_close(reader, writer):
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.close()

    async def main():
        async with hosted(ok_then_close) as host, fetching() as fetcher:
            for _ in range(3):
                assert await fetcher.fetch(host.url(), 10) == b"ok"

    asyncio.run(main())


def test_a_host_that_closes_without_an_answer_is_an_error_after_one_more_try():
    async def close(reader, writer):
        writer.close()

    async def main():
        async with hosted(close) as host, fetching() as fetcher:
            with pytest.raises(MediaError, match="cannot be fetched"):
                await fetcher.fetch(host.url(), 10)
            assert host.num_connections == 2

    asyncio.run(main())


def test_the_first_bytes_decide_before_the_rest_has_come():
    sent = 0

    async def endless(reader, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 10_000_000:
            writer.write(b"x" * 1000)
            await writer.drain()
            sent += 1000

    def refuse(data: bytes) -> None:
        assert data == b"x" * 512
        raise MediaFormatError("no picture")

    async def main():
        async with hosted(endless) as host, fetching() as fetcher:
            with pytest.raises(MediaFormatError, match="no picture"):
                await fetcher.fetch(host.url(), 10**9, sniff=refuse)

    asyncio.run(main())
    assert sent < 10_000_000


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch):
    """A name that changes its address between two look-ups: there is only one, and nothing is asked a second time."""
    answers = iter([["8.8.8.8"], ["127.0.0.1"], ["127.0.0.1"]])
    asked, connected = [], []

    def look_up(host, *args, **kwargs):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in next(answers)]

    class Recorder:
        async def connect_tcp(self, address, port, timeout):
            connected.append(address)
            raise OSError("enough")

    async def main():
        async with fetching(allow_private_addresses=False) as fetcher:
            fetcher._pool._network_backend._inner = Recorder()  # type: ignore[attr-defined]
            with pytest.raises(MediaError, match="enough"):
                await fetcher.fetch("http://rebind.example/a.png", 10)
            assert (asked, connected) == (["rebind.example"], ["8.8.8.8"])
            with pytest.raises(MediaAccessError, match=r"rebind\.example \(127\.0\.0\.1\)"):
                await fetcher.fetch("http://rebind.example/a.png", 10)
            assert connected == ["8.8.8.8"]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        asyncio.run(main())


@pytest.mark.parametrize(
    ("allowed", "host", "address", "permitted"),
    [
        ((), "a", "10.0.0.1", False),
        (("10.0.0.0/8",), "a", "10.0.0.1", True),
        (("10.0.0.0/8",), "a", "::ffff:10.0.0.1", True),
        (("10.0.0.0/8",), "a", "192.168.0.1", False),
        (("192.168.0.1",), "a", "192.168.0.1", True),
        (("fd00::/8",), "a", "fd00::1", True),
        (("Pictures.Internal",), "pictures.internal.", "10.0.0.1", True),
        (("pictures.internal",), "evil.pictures.internal", "10.0.0.1", False),
        ((), "a", "8.8.8.8", True),
    ],
)
def test_hosts_and_networks_can_be_opened(allowed, host, address, permitted):
    rules = AddressRules(allowed=allowed)
    if permitted:
        rules.check(host, [address])
    else:
        with pytest.raises(ForbiddenAddressError):
            rules.check(host, ["8.8.8.8", address])


@pytest.mark.parametrize("entry", ["", "10.0.0.1/8", "10.0.0.0/99", "http://a", "*.internal", "a b"])
def test_an_entry_that_opens_nothing_is_an_error(entry):
    with pytest.raises(ConfigError, match="must be a host name, an address or a network"):
        AddressRules(allowed=(entry,))


@pytest.mark.parametrize("address", ["168.63.129.16", "64:ff9b:1::1", "fec0::1", "::7f00:1", "64:ff9b::a9fe:a9fe", "5f00::1"])
def test_more_addresses_that_are_inside(address):
    assert not is_public(address)


def test_numbers_that_the_system_takes_for_the_own_machine_are_refused():
    for host in ("127.1", "0x7f000001", "2130706433", "0"):
        with pytest.raises(MediaError, match=r"not an address of the public internet|cannot be (resolved|fetched)"):
            fetch(f"http://{host}:1/", 10, FetchLimits())


def test_look_ups_are_off_the_loop_and_bounded(monkeypatch):
    release, running, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def hang(*args, **kwargs):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        release.wait(10)
        with lock:
            running -= 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    async def main():
        resolver = Resolver(max_look_ups=2)
        waiting = [asyncio.create_task(resolver.look_up(f"host{i}.example", 80)) for i in range(5)]
        start = time.monotonic()
        await asyncio.sleep(0.1)  # the loop is free
        assert time.monotonic() - start < 5
        waiting[0].cancel()  # its thread still runs, so its place stays taken
        await asyncio.sleep(0.05)
        assert most == 2
        release.set()
        assert await asyncio.gather(*waiting[1:]) == [["127.0.0.1"]] * 4
        assert most == 2

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", hang)
        asyncio.run(main())


def test_the_synchronous_way_also_works_inside_a_running_loop():
    async def main():
        async with hosted(ok) as host:
            limits = FetchLimits(allow_private_addresses=True)
            one = await asyncio.to_thread(fetch, host.url(), 10, limits)
            assert one == b"ok"

    asyncio.run(main())

    async def inside():
        with pytest.raises(MediaError, match="cannot be fetched"):
            fetch("http://127.0.0.1:1/", 10, FetchLimits(allow_private_addresses=True))

    asyncio.run(inside())
