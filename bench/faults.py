"""A run of faults against a real server: what was sent, what came back, what was lost, and whether all is well afterwards.

Knows nothing about how the server works. Run: `python -m bench.faults`. It ends with 1 if anything was not as documented:
another 5xx than the 503 of an engine that is started again, a page that stays taken, a thread or file that stays open.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import resource
import signal
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
from PIL import Image

from bench.clients import Reply, encode, post
from bench.report import write_result
from bench.servers import Server, our_server

CHAT = "/v1/chat/completions"
NUM_PAGES = 1024
_SETTLE_S = 20.0


@dataclass
class Found:
    """sent, returned, lost: for the table. faults: what was not as documented."""

    sent: str
    returned: str
    lost: str
    faults: list[str]


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 16, "temperature": 0} | fields


def chat_about(url: str) -> dict[str, Any]:
    """A request with a picture."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it?"}]
    return chat("") | {"messages": [{"role": "user", "content": parts}]}


def counted(replies: Iterable[Reply]) -> str:
    """Statuses and how the answers ended, with their numbers."""
    names = Counter(
        f"{reply.status or 'no status'}" + (" error event" if reply.error and reply.status == 200 else "") for reply in replies
    )
    return ", ".join(f"{count} x {name}" for name, count in sorted(names.items()))


def unexpected(replies: Iterable[Reply], statuses: set[int]) -> list[str]:
    return [f"status {reply.status} {reply.error} {reply.body[:120]!r}" for reply in replies if reply.status not in statuses][
        :3
    ]


async def seconds_of_short(port: int, count: int = 10) -> float:
    """Median seconds of a short answer, one after the other."""
    seconds = []
    for index in range(count):
        reply = await post(port, CHAT, chat(f"{index} + 1 = ", max_tokens=4))
        assert reply.ok, reply
        seconds.append(reply.times[-1] - reply.began)
    return statistics.median(seconds)


async def kill_engine(server: Server, scale: float) -> Found:
    """kill -9 of the engine while streams run; then a request every tenth of a second until one is answered."""
    num = max(int(32 * scale), 4)
    bodies = [chat(f"{index} bottles", stream=True, ignore_eos=True, max_tokens=1500) for index in range(num)]
    tasks = [asyncio.create_task(post(server.port, CHAT, body)) for body in bodies]
    await asyncio.sleep(1.5)
    server.engine.send_signal(signal.SIGKILL)
    killed = time.perf_counter()
    replies = await asyncio.gather(*tasks)
    told = max(reply.times[-1] for reply in replies) - killed
    probes = [await post(server.port, CHAT, chat("again"))]
    while probes[-1].status != 200 and time.perf_counter() - killed < 60:
        await asyncio.sleep(0.1)
        probes.append(await post(server.port, CHAT, chat("again")))
    down = time.perf_counter() - killed
    faults = unexpected(probes, {200, 503}) + ([] if probes[-1].ok else ["it was not started again"])
    silent = [reply for reply in replies if not (reply.ended and (reply.error or reply.last.get("choices")))]
    faults += [f"{len(silent)} streams broke off without an event"] * bool(silent)
    faults += [f"clients learned of it after {told:.1f} s"] * (told > 2)
    return Found(
        f"kill -9 under {num} streams, then a request every 0.1 s",
        f"{counted(replies)}, all within {told:.1f} s; then {counted(probes)}; answers again after {down:.1f} s",
        f"{sum(bool(reply.error) for reply in replies)} answers, cut off with an error event",
        faults,
    )


async def full_disk(server: Server, scale: float) -> Found:
    """A disk that takes nothing more, below the cache tier: writes of the engine fail behind 1,000 bytes."""
    num = max(int(200 * scale), 20)
    unlimited = server.engine.rlimit(psutil.RLIMIT_FSIZE)
    server.engine.rlimit(psutil.RLIMIT_FSIZE, (1000, unlimited[1]))
    bodies = [chat(f"{index} " * 200) for index in range(num)]
    replies = await in_waves(server.port, bodies, 32)
    server.engine.rlimit(psutil.RLIMIT_FSIZE, unlimited)
    faults = unexpected(replies, {200})
    return Found(
        f"{num} prompts of 200 words while no write to the cache folder succeeds", counted(replies), "no answer", faults
    )


async def disconnects(server: Server, scale: float) -> Found:
    """Clients that leave: before the answer, at its first event, in the middle."""
    num = max(int(1000 * scale), 50)
    body = chat("count", stream=True, ignore_eos=True, max_tokens=1000)
    replies = await asyncio.gather(*(post(server.port, CHAT, body, leave_after=(0, 1, 5)[index % 3]) for index in range(num)))
    there = [reply for reply in replies if reply.status]
    faults = unexpected(there, {200}) + [reply.error for reply in replies if reply.error][:3]
    began = time.perf_counter()
    await asyncio.to_thread(server.wait_idle)
    free = time.perf_counter() - began
    sent = f"{num} clients at once that leave before the answer, after 1 event or after 5"
    return Found(
        sent, f"{counted(there)} to those who waited; idle {free:.1f} s after the last", "what nobody waited for", faults
    )


async def slow_readers(server: Server, scale: float) -> Found:
    """Clients that ask for long answers and read nothing, while another one asks; then they read."""
    num = max(int(500 * scale), 20)
    before = await seconds_of_short(server.port)
    # Log-probabilities make an answer of half a megabyte, more than sockets hold.
    body = chat("count", stream=True, ignore_eos=True, max_tokens=60, logprobs=True, top_logprobs=20)
    readers = await asyncio.gather(*(not_reading(server.port, body) for _ in range(num)))
    end = time.monotonic() + 120
    while any(server.get("/load")["engine"][name] for name in ("num_running", "num_waiting")) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    held = server.get("/load")
    during = await seconds_of_short(server.port)
    replies = await asyncio.gather(*(read_to_end(*reader) for reader in readers))
    whole = sum(b"data: [DONE]" in data for data in replies)
    faults = [f"only {whole} of {num} answers were whole"] * (whole < num)
    faults += [f"short answers took {during:.3f} s instead of {before:.3f}"] * (during > 2 * before + 0.05)
    faults += ["the engine waits for readers"] * bool(held["engine"]["num_running"])
    size = sum(map(len, replies)) / num / 1e6
    return Found(
        f"{num} clients that read nothing of answers of {size:.1f} MB until the engine is done; beside them short requests",
        f"{held['server_load']} unsent when the engine is done, then {whole} whole answers; "
        f"short requests {during * 1e3:.0f} ms, {before * 1e3:.0f} ms without them",
        f"{num - whole} answers",
        faults,
    )


async def not_reading(port: int, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with a request and a small window."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    writer.write(encode(CHAT, body))
    await writer.drain()
    return reader, writer


async def read_to_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    data = b""
    with contextlib.suppress(OSError):
        data = await asyncio.wait_for(reader.read(), 120)
    writer.close()
    return data


async def truncated_uploads(server: Server, scale: float) -> Found:
    """Bodies that end in the middle: the connection closes, or the JSON is cut."""
    num = max(int(200 * scale), 20)

    async def cut_connection() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        data = encode(CHAT, chat("x" * 20_000))
        writer.write(data[: len(data) // 2])
        await writer.drain()
        writer.close()

    async def cut_body() -> Reply:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps(chat("x" * 20_000)).encode()[:10_000]
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        data = await reader.read()
        writer.close()
        return Reply(status=int(data.split()[1]) if data else 0, body=data[-300:])

    await asyncio.gather(*(cut_connection() for _ in range(num // 2)))
    replies = await asyncio.gather(*(cut_body() for _ in range(num // 2)))
    sent = f"{num // 2} connections closed in the middle of a body, {num // 2} bodies with JSON that is cut off"
    return Found(sent, f"{counted(replies)} to the cut JSON", "nothing", unexpected(replies, {400}))


async def silent_host(server: Server, scale: float) -> Found:
    """Pictures from a host that takes the connection and says nothing; beside them text."""
    num = max(int(16 * scale), 4)
    before = await seconds_of_short(server.port)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    body = chat_about(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png")
    began = time.perf_counter()
    tasks = [asyncio.create_task(post(server.port, CHAT, body)) for _ in range(num)]
    await asyncio.sleep(1)
    during = await seconds_of_short(server.port)
    replies = await asyncio.gather(*tasks)
    listener.close()
    took = time.perf_counter() - began
    faults = unexpected(replies, {400}) + [f"they took {took:.0f} s"] * (took > 45)
    faults += [f"text took {during:.3f} s instead of {before:.3f}"] * (during > 2 * before + 0.05)
    return Found(
        f"{num} requests with a picture of a host that never answers; beside them short requests",
        f"{counted(replies)} within {took:.0f} s; short requests {during * 1e3:.0f} ms, {before * 1e3:.0f} ms without them",
        "nothing",
        faults,
    )


async def in_waves(port: int, bodies: list[dict[str, Any]], size: int) -> list[Reply]:
    replies: list[Reply] = []
    for begin in range(0, len(bodies), size):
        replies += await asyncio.gather(*(post(port, CHAT, body) for body in bodies[begin : begin + size]))
    return replies


Fault = Callable[[Server, float], Coroutine[Any, Any, Found]]
FAULTS: dict[str, Fault] = {
    "dead engine": kill_engine,
    "full disk": full_disk,
    "clients that leave": disconnects,
    "slow readers": slow_readers,
    "truncated uploads": truncated_uploads,
    "silent picture host": silent_host,
}


def open_things(server: Server) -> dict[str, int]:
    found = {}
    for name, process in (("server", server.process), ("engine", server.engine)):
        found[f"{name} threads"], found[f"{name} files"] = process.num_threads(), process.num_fds()
    return found


def settled(server: Server, before: dict[str, int]) -> tuple[str, list[str]]:
    """What is still taken once the server is idle, and what of it is a fault. Pools may still grow to their size."""
    engine = server.wait_idle(60)["engine"]
    end = time.monotonic() + _SETTLE_S
    while (more := grown(before, open_things(server))) and time.monotonic() < end:
        time.sleep(0.5)
    faults = [f"{engine['num_pages'] - engine['num_free_pages']} pages stay taken"] * (
        engine["num_free_pages"] < engine["num_pages"]
    )
    faults += [f"{count} more {name}" for name, count in more.items()]
    faults += ["not ready"] * (not server.is_ready())
    return f"{engine['num_free_pages']} of {engine['num_pages']} pages free", faults


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - count for name, count in before.items() if after[name] > count}


async def warm_up(server: Server) -> None:
    """Use every pool of threads and connections once, so that what grows later is a leak."""
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56)).save(buffer, "PNG")
    bodies = [chat_about("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())] * 16
    await in_waves(server.port, bodies, 16)
    bodies = [chat(f"{index} " * 200) for index in range(200)]
    await in_waves(server.port, bodies, 50)
    await in_waves(server.port, bodies[:20], 20)  # by now these are on disk only


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=FAULTS, nargs="+", default=list(FAULTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the requests")
    parser.add_argument("--port", type=int, default=18340)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--num-gpu-blocks-override", str(NUM_PAGES), "--disk-cache-folder", folder, "--disk-cache-gib", "0.25"]
        flags += ["--allow-private-media", "--max-concurrency", "2048"]
        with our_server("tiny", args.port, *flags) as server:
            asyncio.run(warm_up(server))
            server.wait_idle()
            before = open_things(server)
            for name in args.only:
                found = asyncio.run(FAULTS[name](server, args.scale))
                state, leaks = settled(server, before)
                faults = found.faults + leaks
                rows.append(
                    {"fault": name, "sent": found.sent, "came back": found.returned, "lost": found.lost, "afterwards": state}
                )
                rows[-1]["as documented"] = "yes" if not faults else "NO: " + "; ".join(faults)
                print(*rows[-1].values(), sep="\n  ", flush=True)
                print(before, open_things(server))
    if not args.dry_run:
        notes = [
            "the shipped model, one server for all faults in this order; checked after each: ready, pages, threads and open "
            "files of both processes, and that no status was a 5xx but the 503 while the engine is started again",
            "full disk: RLIMIT_FSIZE of the engine's process, which needs no root and fails each write as a full disk does",
        ]
        print(write_result("faults", "Faults and what they do", rows, notes=notes))
    return 1 if any(row["as documented"] != "yes" for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
