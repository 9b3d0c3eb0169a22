"""How a server listens, what it accepts and how it stops.

Knows nothing about HTTP libraries or about the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError
from ernie45.config.media import DEFAULT_PROCESSOR_CACHE_GIB, check_processor_kwargs, limit_per_prompt

_LEAST = {"port": 0, "max_body_bytes": 1024, "max_num_requests": 1, "num_media_workers": 1}


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """One server over one model.

    model                 a model folder, or a name that `resolve_model` knows.
    host, port            where it listens; port 0 takes a free one.
    allowed_hosts         names besides those of this machine by which a server may be asked that has no keys and listens on
                          this machine only; see `server.host_check`.
    served_model_name     the name clients use; None: the last part of `model`.
    engine                budgets and caches of the engine.
    max_body_bytes        largest request body; a larger one is answered with 413.
    max_num_requests      requests at work or waiting; one more is answered with 429.
    request_timeout_s     seconds that a request may take, from its first byte to the last of its answer; one that takes longer
                          ends with 504, or with an error event in a stream. None: as long as it likes.
    client_timeout_s      a client that keeps the server waiting so long, for its request or by not reading, is dropped.
    trust_request_chat_template  whether a request may bring a chat template of its own, which is a program.
    chat_template         a jinja file in place of the model's chat template; None: the model's.
    tool_call_parser      how the model writes tool calls, one of `server.tools.TOOL_FORMATS`.
    seed                  of requests that bring none; None: the engine draws one for each.
    num_media_workers     threads that fetch, decode and encode what requests bring.
    allow_private_media   whether picture addresses may point into private networks and to this machine.
    allowed_media_hosts   host names, addresses and networks (10.1.0.0/16) that picture addresses may point to although they
                          are not of the public internet.
    allowed_media_folder  a folder whose files may be named by file:// addresses; None: no file may.
    limit_mm_per_prompt   pictures of one request by kind, over `config.media.DEFAULT_LIMIT_PER_PROMPT`; 0 refuses a kind.
    mm_processor_kwargs   numbers of the picture processing to change, by FastDeploy's names; see `config.media`. A request may
                          ask for less, never for more.
    max_media_in_flight   GiB of downloaded pictures and videos that are not processed yet; further ones wait.
    max_processor_cache   GiB of processed pictures to keep, so that the same one is not decoded again; 0: none.
    engine_port           port of 127.0.0.1 between server and engine; None: a private ipc file.
    engine_timeout_s      an engine that does not answer so long hangs, and is killed and started again. A step answers at its
                          end, so this must be longer than the longest step.
    api_keys              keys of which every route but /health wants one; none: the server is open. In no repr.
    metrics_port          a second port, for /metrics alone; None: only on `port`. 0 takes a free one.
    log_json              log lines are JSON objects.
    log_details           write what exceptions say, which may quote prompts, and not only where they came from.
    trace_endpoint        address of an OpenTelemetry collector (OTLP by HTTP); None: no traces.
    drain_seconds         how long a stop waits for running answers.
    quiet                 print neither the start-up lines nor the access log.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8180
    allowed_hosts: tuple[str, ...] = ()
    served_model_name: str | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_body_bytes: int = 64 * 2**20
    max_num_requests: int = 512
    request_timeout_s: float | None = None
    client_timeout_s: float = 60.0
    trust_request_chat_template: bool = False
    chat_template: Path | None = None
    tool_call_parser: str = "ernie45"
    seed: int | None = None
    num_media_workers: int = 4
    allow_private_media: bool = False
    allowed_media_hosts: tuple[str, ...] = ()
    allowed_media_folder: Path | None = None
    limit_mm_per_prompt: Mapping[str, int] = field(default_factory=dict)
    mm_processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_media_in_flight: float = 1.0
    max_processor_cache: float = DEFAULT_PROCESSOR_CACHE_GIB
    engine_port: int | None = None
    engine_timeout_s: float = 300.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    metrics_port: int | None = None
    log_json: bool = False
    log_details: bool = False
    trace_endpoint: str | None = None
    drain_seconds: float = 10.0
    quiet: bool = False

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {low}; change it or leave it out")
        if self.port > 65535:
            raise ConfigError(f"port ({self.port}) must be at most 65535; use 0 to take a free one")
        if self.request_timeout_s is not None and not self.request_timeout_s > 0:
            rule = f"request_timeout_s ({self.request_timeout_s!r}) must be a number above 0; leave it out for no limit"
            raise ConfigError(rule)
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed ({self.seed!r}) must be from 0 to {2**63 - 1}; leave it out for a fresh one each time")
        if not self.client_timeout_s > 0:
            raise ConfigError(
                f"client_timeout_s ({self.client_timeout_s!r}) must be a number above 0; leave it out for a minute"
            )
        if self.engine_port is not None and not 0 <= self.engine_port <= 65535:
            raise ConfigError(f"engine_port ({self.engine_port!r}) must be from 0 to 65535; leave it out for none")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise ConfigError(f"metrics_port ({self.metrics_port!r}) must be from 0 to 65535; leave it out for none")
        if not self.engine_timeout_s > 0:
            raise ConfigError(f"engine_timeout_s ({self.engine_timeout_s!r}) must be above 0; leave it out for the default")
        if not self.drain_seconds >= 0:
            raise ConfigError(f"drain_seconds ({self.drain_seconds!r}) must be a number of at least 0; use 0 to stop at once")
        limit_per_prompt(self.limit_mm_per_prompt)
        check_processor_kwargs(self.mm_processor_kwargs)
        if not 0 < self.max_media_in_flight < 2**20:
            raise ConfigError(f"max_media_in_flight ({self.max_media_in_flight!r}) must be GiB above 0; leave it out for 1")
        if not 0 <= self.max_processor_cache < 2**20:
            raise ConfigError(f"max_processor_cache ({self.max_processor_cache!r}) must be GiB of at least 0; use 0 for none")
        if self.chat_template is not None and not Path(self.chat_template).is_file():
            raise ConfigError(
                f"chat_template ({str(self.chat_template)!r}) must be an existing jinja file; correct the name, or leave it "
                "out to use the model's"
            )
        if self.allowed_media_folder is not None and not Path(self.allowed_media_folder).is_dir():
            raise ConfigError(
                f"allowed_media_folder ({str(self.allowed_media_folder)!r}) must be an existing folder; "
                "create it, or leave the option out to refuse file:// addresses"
            )

    @property
    def model_name(self) -> str:
        """The name under which the model is listed."""
        return self.served_model_name or Path(self.model).name or self.model
