"""Runs a server until it is told to stop: binds, loads, says what it can hold, drains, ends.

Knows nothing about routes or requests.
"""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import uvicorn

from ernie45 import __version__
from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, Ernie45Error
from ernie45.config.server import ServerConfig
from ernie45.processor import Processor
from ernie45.processor.template import ChatTemplate
from ernie45.server.app import create_app
from ernie45.server.auth import ApiKeys
from ernie45.server.descriptors import LoopErrors, raise_limit
from ernie45.server.engine_client import EngineClient
from ernie45.server.log_format import log_config
from ernie45.server.media import media_limits
from ernie45.server.messages import Capacity
from ernie45.server.metrics import metrics_app
from ernie45.server.sampling import SamplingDefaults
from ernie45.server.service import Service
from ernie45.server.stalled import StallWatch
from ernie45.server.supervisor import EngineOrder, EngineProcess
from ernie45.server.tools import tool_format
from ernie45.server.wire_socket import Connection

# What uvicorn waits for tasks beyond our own draining, before it cancels them.
_MARGIN_S = 3
_BACKLOG = 2048
_EXIT_SECOND_SIGNAL = 130


def serve(config: ServerConfig) -> int:
    """Serve until SIGINT or SIGTERM; then drain and return 0. 1 if the engine failed for good under way.

    A second signal ends everything at once, with 130. Raises ConfigError if a port cannot be had, CheckpointError for a bad
    model.
    """
    tool_format(config.tool_call_parser)  # ConfigError now rather than with the first request
    raise_limit()
    with ExitStack() as stack:  # all ports are taken before anything is loaded
        listener = stack.enter_context(bind(config.host, config.port))
        metrics_listener = None
        if config.metrics_port is not None:
            metrics_listener = stack.enter_context(bind(config.host, config.metrics_port, "metrics_port"))
        service = make_service(config)
        stack.callback(service.engine.close)
        return ServerRun(config, service, listener, metrics_listener).run()


def make_service(config: ServerConfig) -> Service:
    """A service whose engine is not started yet; close it, or start and stop it. CheckpointError for a bad model."""
    folder = resolve_model(config.model)
    engine = EngineClient(
        lambda connection: EngineProcess(_order(config, folder, connection)),
        port=config.engine_port,
        timeout_s=config.engine_timeout_s,
    )
    try:
        processor = Processor.from_dir(folder, limits=media_limits(config))
        if config.chat_template is not None:
            processor.template = ChatTemplate(_read(config.chat_template), processor.template.named_tokens)
        return Service(config, processor, engine, SamplingDefaults.from_dir(folder))
    except BaseException:
        engine.close()
        raise


def _read(chat_template: Path) -> str:
    try:
        return chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template ({str(chat_template)!r}) cannot be read: {error}; name a jinja file") from error


def _order(config: ServerConfig, folder: Path, connection: Connection) -> EngineOrder:
    return EngineOrder(
        address=connection.address,
        identity=connection.identity,
        folder=str(folder),
        config=config.engine,
        verbose=not config.quiet,
        log_json=config.log_json,
        log_details=config.log_details,
    )


def bind(host: str, port: int, name: str = "port") -> socket.socket:
    """A bound socket, so that a taken port is known before a model is loaded. ConfigError says why it cannot be had.

    name: the option that the port comes from.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        rule = f"host ({host!r}) is no address of this machine: {error.strerror}; use 127.0.0.1 or 0.0.0.0"
        raise ConfigError(rule) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # bound alone, another server could still take the port
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{name} ({port}) is in use on {host}; stop what uses it, or choose another with {flag}"
            ) from error
        raise ConfigError(f"host ({host!r}) and {name} ({port}) cannot be bound: {error.strerror}; choose others") from error
    return listener


class ServerRun(uvicorn.Server):
    """uvicorn with our start-up lines, our draining and our exit codes."""

    def __init__(
        self, config: ServerConfig, service: Service, listener: socket.socket, metrics_listener: socket.socket | None = None
    ) -> None:
        app = create_app(service, on_start=self._watch_engine)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=log_config(config.quiet, config.log_json, config.log_details),
                access_log=False,  # it would write paths with their queries; `access_log` writes ours
                server_header=False,
                timeout_graceful_shutdown=int(config.drain_seconds) + _MARGIN_S,
            )
        )
        self.server_config = config
        self.service = service
        self.listener = listener
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self.metrics_listener = metrics_listener
        self._metrics = _MetricsServer(service) if metrics_listener is not None else None
        self._tasks: list[asyncio.Task[None]] = []
        self._watches: list[asyncio.Task[None]] = []

    def run(self, sockets: list[socket.socket] | None = None) -> int:  # type: ignore[override]
        """Serve until told to stop; the exit code."""
        self._say(f"ernie45 {__version__}: loading {self.server_config.model}")
        super().run(sockets or [self.listener])
        death = self.service.engine.death
        if death is None or death.cause == "stopped":
            return 0
        if death.cause == "user":
            raise Ernie45Error(death.message)
        self._say(death.message)
        return 1

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.service.num_active:
            self._say(f"stopping: {self.service.num_active} answers have {self.server_config.drain_seconds:g} s to end")
        draining = asyncio.create_task(self.service.drain(self.server_config.drain_seconds))
        await super().shutdown(sockets)
        draining.cancel()
        if self._metrics is not None:  # the last to go: a drain can be watched
            self._metrics.should_exit = True
            await asyncio.gather(*self._tasks[1:])
        for watch in self._watches:
            watch.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second ends this process and the engine's at once, whatever they are doing."""
        if self.should_exit:
            self.service.engine.kill()
            os._exit(_EXIT_SECOND_SIGNAL)
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, it does not raise the signal again afterwards: we were asked to stop and did."""
        try:
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever runs us there sets should_exit
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _watch_engine(self) -> None:
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        self._tasks = [asyncio.create_task(self._follow_engine())]
        if self._metrics is not None and self.metrics_listener is not None:
            self._tasks.append(asyncio.create_task(self._metrics.serve([self.metrics_listener])))
        servers = [self, *([self._metrics] if self._metrics is not None else [])]
        limit_s = self.server_config.client_timeout_s
        self._watches = [asyncio.create_task(StallWatch(each.server_state.connections, limit_s).run()) for each in servers]

    async def _follow_engine(self) -> None:
        engine = self.service.engine
        await engine.wait_loaded()
        if engine.capacity is not None and not self.should_exit:
            self._say_ready(engine.capacity)
        await engine.wait_dead()
        self.should_exit = True

    def _say_ready(self, capacity: Capacity) -> None:
        host, port = self.address
        everywhere = ", on all addresses of this machine" if host in ("0.0.0.0", "::") else ""
        shown = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
        model = self.service.config.model_name
        lines = [f"ready: model {model}, chat page http://{shown}:{port}/, OpenAI API http://{shown}:{port}/v1{everywhere}"]
        if self.metrics_listener is not None:
            lines.append(f"metrics: http://{shown}:{self.metrics_listener.getsockname()[1]}/metrics")
        lines.append(
            f"holds: {capacity.max_num_seqs} sequences at once, {capacity.num_cache_tokens:,} tokens in "
            f"{capacity.num_pages:,} pages, {capacity.max_model_len:,} tokens in one request{_tiers(self.server_config.engine)}"
        )
        self._say("\n".join(lines))

    def _say(self, text: str) -> None:
        if not self.server_config.quiet:
            with suppress(OSError):  # a full disk, or nobody at the other end: no reason to end or not to drain
                sys.stderr.write(text + "\n")
                sys.stderr.flush()


def _tiers(config: EngineConfig) -> str:
    """What the lower tiers of the prefix cache may hold."""
    host, disk = config.host_cache_bytes, config.disk_cache_bytes
    memory = f"; cached pages also in {host / 2**30:g} GiB of main memory" if host else ""
    folder = f"; cached pages also in {disk / 2**30:g} GiB of {config.disk_cache_folder}" if config.disk_cache_folder else ""
    return memory + folder


class _MetricsServer(uvicorn.Server):
    """/metrics on a port of its own, in the event loop of the server that it tells about, which also handles the signals."""

    def __init__(self, service: Service) -> None:
        app = metrics_app(service.metrics, ApiKeys(service.config.api_keys))
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off"))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
