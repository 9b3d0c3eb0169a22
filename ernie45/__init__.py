"""ERNIE 4.5 in PyTorch: model, training, quantisation and serving.

Importing the package imports no torch; each sub-package imports what it needs. `ernie45.LLM` is `offline.LLM`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ernie45.offline import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from ernie45.offline import LLM

        return LLM
    raise AttributeError(f"module 'ernie45' has no attribute {name!r}")
