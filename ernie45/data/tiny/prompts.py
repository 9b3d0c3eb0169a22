"""Prompts with answers for the tiny model: its own questions, each a pure function of (seed, number).

Knows nothing about models, rewards or how prompts are chosen.
"""

from collections.abc import Sequence
from random import Random

from ernie45.config.errors import ConfigError
from ernie45.data.records import Prompt
from ernie45.data.tiny.digits import DigitSet
from ernie45.data.tiny.mixture import makers
from ernie45.data.tiny.strips import StripWriter


class TinyPrompts:
    """A sequence of prompts; the domain of each is its skill. skills: in turn by chance, all alike."""

    def __init__(self, seed: int, count: int, skills: Sequence[str], digits: DigitSet) -> None:
        """ConfigError for an unknown skill."""
        self._makers = makers(StripWriter(digits))
        unknown = sorted(set(skills) - set(self._makers))
        if unknown or not skills:
            raise ConfigError(f"generated.skills ({', '.join(unknown)!r}) must be among {', '.join(self._makers)}")
        self._seed, self._skills = seed, list(skills)
        self.domains = [self._rng(number).choice(self._skills) for number in range(count)]

    def __len__(self) -> int:
        return len(self.domains)

    def __getitem__(self, number: int) -> Prompt:
        rng = self._rng(number)
        domain = rng.choice(self._skills)
        sample = self._makers[domain](rng)
        return Prompt(
            messages=tuple(sample.prompt_messages()),
            answer=sample.turn.answer,
            domain=domain,
            origin=f"generated prompt {number}",
        )

    def _rng(self, number: int) -> Random:
        return Random(f"{self._seed}/prompts/{number}")
