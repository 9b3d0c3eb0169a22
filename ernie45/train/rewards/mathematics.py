"""The judge of mathematical answers: the `math-verify` package, in worker processes.

Knows nothing about mathematics itself. In processes because the package sets signal.alarm and raises in threads.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

from ernie45.config.errors import ConfigError
from ernie45.data.answers import Graded
from ernie45.train.rewards.reward import Unscored, references
from ernie45.train.rewards.workers import Pooled


@dataclass(frozen=True, kw_only=True)
class Math(Pooled):
    r"""1 if the answer's last expression (LaTeX, `\boxed{}` first, or plain) is mathematically equal to a reference, else 0.

    Numbers, fractions, sets, intervals, matrices, equations; see math-verify. An answer without an expression gets 0, a
    reference without one is an event. timeout: seconds an answer; workers: processes (about 100 MB each).
    """

    def target(self) -> str:
        return "ernie45.train.rewards.mathematics:verify_answer"

    def options(self) -> dict[str, Any]:
        return {"seconds": max(1, round(self.timeout))}

    def start(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError('reward math needs the package math-verify; install it with pip install "ernie45[train]"')
        super().start()


def verify_answer(item: Graded, seconds: int) -> float:
    """The function of the workers: 1 or 0. Its own limits are those of the package, above the pool's only by rounding."""
    from math_verify import parse, verify

    right = [parse(_as_latex(reference), parsing_timeout=seconds) for reference in references(item)]
    if not all(right):
        raise Unscored("bad_reference", f"answer ({item.reference!r}) has no expression that math-verify can read")
    given = parse(item.answer, parsing_timeout=seconds)
    return float(bool(given) and any(verify(one, given, timeout_seconds=seconds) for one in right))


def _as_latex(reference: str) -> str:
    r"""LaTeX is read only where it is marked as such: a bare reference like \frac{1}{2} gets dollar signs."""
    marked = "$" in reference or r"\boxed" in reference or r"\(" in reference or r"\[" in reference
    return reference if marked or not any(sign in reference for sign in "\\^_{}") else f"${reference}$"
