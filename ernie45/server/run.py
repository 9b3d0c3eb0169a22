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
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from ernie45 import __version__
from ernie45.checkpoint import resolve_model
from ernie45.config.errors import ConfigError, Ernie45Error
from ernie45.config.server import ServerConfig
from ernie45.processor import Processor
from ernie45.server.app import create_app
from ernie45.server.engine_client import EngineClient
from ernie45.server.log_format import log_config
from ernie45.server.media import media_limits
from ernie45.server.messages import Capacity
from ernie45.server.sampling import SamplingDefaults
from ernie45.server.service import Service
from ernie45.server.supervisor import EngineOrder, EngineProcess
from ernie45.server.wire_socket import Connection

# What uvicorn waits for tasks beyond our own draining, before it cancels them.
_MARGIN_S = 3
_BACKLOG = 2048
_EXIT_SECOND_SIGNAL = 130


def serve(config: ServerConfig) -> int:
    """Serve until SIGINT or SIGTERM; then drain and return 0. 1 if the engine failed under way.

    A second signal ends everything at once, with 130. Raises ConfigError if a port cannot be had, CheckpointError for a bad
    model.
    """
    listener = bind(config.host, config.port)
    try:
        folder = resolve_model(config.model)
        processor = Processor.from_dir(folder, limits=media_limits(config))
        engine = EngineClient(
            lambda connection: EngineProcess(_order(config, folder, connection)),
            port=config.engine_port,
            timeout_s=config.engine_timeout_s,
        )
        service = Service(config, processor, engine, SamplingDefaults.from_dir(folder))
        return ServerRun(config, service, listener).run()
    finally:
        listener.close()


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


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before a model is loaded. ConfigError says why it cannot be had."""
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
            raise ConfigError(f"port ({port}) is in use on {host}; stop what uses it, or choose another with --port") from error
        raise ConfigError(f"host ({host!r}) and port ({port}) cannot be bound: {error.strerror}; choose others") from error
    return listener


class ServerRun(uvicorn.Server):
    """uvicorn with our start-up lines, our draining and our exit codes."""

    def __init__(self, config: ServerConfig, service: Service, listener: socket.socket) -> None:
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
        self._watcher: asyncio.Task[None] | None = None

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
        self._watcher = asyncio.create_task(self._follow_engine())

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
        self._say(
            f"ready: model {model}, chat page http://{shown}:{port}/, OpenAI API http://{shown}:{port}/v1{everywhere}\n"
            f"holds: {capacity.max_num_seqs} sequences at once, {capacity.num_cache_tokens:,} tokens in "
            f"{capacity.num_pages:,} pages, {capacity.max_model_len:,} tokens in one request"
        )

    def _say(self, text: str) -> None:
        if not self.server_config.quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
