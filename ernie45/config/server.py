"""How a server listens, what it accepts and how it stops.

Knows nothing about HTTP libraries or about the model.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError

_LEAST = {"port": 0, "max_body_bytes": 1024, "max_num_requests": 1, "num_media_workers": 1}


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """One server over one model.

    model                 a model folder, or a name that `resolve_model` knows.
    host, port            where it listens; port 0 takes a free one.
    served_model_name     the name clients use; None: the last part of `model`.
    engine                budgets and caches of the engine.
    max_body_bytes        largest request body; a larger one is answered with 413.
    max_num_requests      requests at work or waiting; one more is answered with 429.
    num_media_workers     threads that fetch, decode and encode what requests bring.
    allow_private_media   whether picture addresses may point into private networks and to this machine.
    allowed_media_folder  a folder whose files may be named by file:// addresses; None: no file may.
    drain_seconds         how long a stop waits for running answers.
    quiet                 print neither the start-up lines nor the access log.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8180
    served_model_name: str | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_body_bytes: int = 64 * 2**20
    max_num_requests: int = 512
    num_media_workers: int = 4
    allow_private_media: bool = False
    allowed_media_folder: Path | None = None
    drain_seconds: float = 10.0
    quiet: bool = False

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {low}; change it or leave it out")
        if self.port > 65535:
            raise ConfigError(f"port ({self.port}) must be at most 65535; use 0 to take a free one")
        if not self.drain_seconds >= 0:
            raise ConfigError(f"drain_seconds ({self.drain_seconds!r}) must be a number of at least 0; use 0 to stop at once")
        if self.allowed_media_folder is not None and not Path(self.allowed_media_folder).is_dir():
            raise ConfigError(
                f"allowed_media_folder ({str(self.allowed_media_folder)!r}) must be an existing folder; "
                "create it, or leave the option out to refuse file:// addresses"
            )

    @property
    def model_name(self) -> str:
        """The name under which the model is listed."""
        return self.served_model_name or Path(self.model).name or self.model
