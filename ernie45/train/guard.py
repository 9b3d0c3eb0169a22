"""Tells a broken step: a loss or gradient that is no number, or a loss far above those before.

Knows nothing about what is done then.
"""

import math
from statistics import median
from typing import Any

NO_NUMBER = "no number: "
"""How the reason begins if a loss or a gradient is not finite."""


class Guard:
    """Watches the losses of a stage. mads: as in `LoopConfig.spike_mads`; 0: only what is no number is a fault."""

    def __init__(self, mads: float, window: int) -> None:
        self._mads, self._window = mads, window
        self._losses: list[float] = []
        self._stage = ""

    def fault(self, stage: str, loss: float, grad_norm: float) -> str | None:
        """Why a step must not count, or None, and then its loss is remembered. Another stage begins a new history.

        A loss is a spike above median + mads * MAD of the last `window` ones, of which there must be a quarter at least. MAD
        counts as 1 % of the median where it is less: a loss that hardly moves has no spikes of that size.
        """
        if not math.isfinite(loss):
            return f"{NO_NUMBER}loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"{NO_NUMBER}gradient norm is {grad_norm}"
        if stage != self._stage:
            self._stage, self._losses = stage, []
        if self._mads and len(self._losses) >= self._window // 4:
            middle = median(self._losses)
            spread = max(median(abs(value - middle) for value in self._losses), 0.01 * abs(middle))
            limit = middle + self._mads * spread
            if loss > limit:
                return f"loss {loss:.4g} is above {limit:.4g} (median {middle:.4g} + {self._mads:g} x {spread:.2g})"
        self._losses = [*self._losses, loss][-self._window :]
        return None

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"stage": self._stage, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stage, self._losses = state["stage"], list(state["losses"])
