"""ERNIE 4.5 in PyTorch: model, training, quantisation and serving.

Importing the package imports no torch; each sub-package imports what it needs. What programs need is here by name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ernie45.config.engine import EngineConfig
    from ernie45.config.sampling import SamplingParams
    from ernie45.config.speculation import SpeculationConfig
    from ernie45.offline import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "EngineConfig", "SamplingParams", "SpeculationConfig", "__version__"]

_HOMES = {
    "EngineConfig": "ernie45.config.engine",
    "LLM": "ernie45.offline",
    "SamplingParams": "ernie45.config.sampling",
    "SpeculationConfig": "ernie45.config.speculation",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ernie45' has no attribute {name!r}")
