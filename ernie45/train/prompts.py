"""Which prompts a rollout asks: a running estimate of how hard each is, lessons that come one after the other, and what each
prompt is as a model input.

Knows nothing about engines, rewards or losses.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from ernie45.config.errors import ConfigError, DataError
from ernie45.config.inputs import ModelInput
from ernie45.config.policy import PromptsConfig
from ernie45.data.records import Prompt

_LEAST_WEIGHT = 0.02  # of a prompt that is always or never right: what the model can do changes


class Asked(NamedTuple):
    """A prompt and its model input."""

    prompt: Prompt
    inputs: ModelInput


class PromptPool:
    """The prompts of a run. domains: of each, by which lessons choose. make: number -> the prompt with its input, pure;
    DataError for one that cannot be asked."""

    def __init__(self, domains: Sequence[str], make: Callable[[int], Asked]) -> None:
        if not domains:
            raise DataError("--data must have at least one prompt with an answer; there is none")
        self.domains = list(domains)
        self._make = lru_cache(maxsize=4096)(make)

    def __len__(self) -> int:
        return len(self.domains)

    def __getitem__(self, number: int) -> Asked:
        return self._make(number)


class PromptTable:
    """What is known of each prompt, and the choice of the next ones from it. Equal on all processes."""

    def __init__(self, domains: Sequence[str], config: PromptsConfig, seed: int) -> None:
        """ConfigError for a lesson with a domain that no prompt has."""
        self._config, self._seed = config, seed
        self._domains = np.array(domains)
        self._estimates = np.full(len(domains), np.nan)
        self._asked = np.zeros(len(domains), dtype=np.int64)
        self._lessons = config.lessons()
        for lesson in self._lessons:
            unknown = sorted(set(lesson.domains) - set(domains))
            if unknown:
                known = ", ".join(sorted(set(domains)))
                raise ConfigError(f"prompts.curriculum names domain {unknown[0]!r}, but the prompts have {known}; correct it")

    def choose(self, count: int, step: int, draw: tuple[int, int], taken: Sequence[int]) -> list[int]:
        """Up to `count` prompts for a rollout at an update, none of those taken. draw: (rollout, refill), which the choice is a
        function of, beside the table and the seed."""
        free = self._allowed(step)
        free[list(taken)] = False
        numbers = np.flatnonzero(free)
        rng = np.random.default_rng([self._seed, *draw])
        keys = rng.random(len(numbers))
        if self._config.order == "difficulty":
            # Efraimidis and Spirakis, 2006: the largest u ** (1 / weight) are a weighted draw without replacement.
            order = np.argsort(-np.log(keys) / self._weights()[numbers], kind="stable")
        else:
            order = np.lexsort((keys, self._asked[numbers]))
        return numbers[order[:count]].tolist()

    def observe(self, number: int, share_right: float | None) -> None:
        """A prompt has been asked; share_right: of its answers with a reward; None: none had one."""
        self._asked[number] += 1
        if share_right is not None:
            old, decay = self._estimates[number], self._config.decay
            self._estimates[number] = share_right if np.isnan(old) else decay * old + (1 - decay) * share_right

    def estimates(self) -> np.ndarray:
        """How often each prompt is now answered right, [prompts]; one that was never asked has the mean of its domain."""
        filled = self._estimates.copy()
        for domain in np.unique(self._domains):
            of_domain = self._domains == domain
            known = of_domain & ~np.isnan(self._estimates)
            filled[of_domain & np.isnan(self._estimates)] = self._estimates[known].mean() if known.any() else 0.5
        return filled

    def state_dict(self) -> dict[str, Any]:
        return {"estimates": torch.from_numpy(self._estimates.copy()), "asked": torch.from_numpy(self._asked.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._estimates, self._asked = state["estimates"].numpy().copy(), state["asked"].numpy().copy()

    def _weights(self) -> np.ndarray:
        """Largest for prompts that are right half of the time: the variance of their reward, as a share of the largest."""
        estimates = self.estimates()
        return np.maximum(4 * estimates * (1 - estimates), _LEAST_WEIGHT)

    def _allowed(self, step: int) -> np.ndarray:
        lessons = [lesson for lesson in self._lessons if lesson.first_step <= step]
        if not lessons or not lessons[-1].domains:
            return np.ones(len(self._domains), dtype=bool)
        return np.isin(self._domains, lessons[-1].domains)
