"""The reward system of a run: a judge for each domain, scores with a mask, events counted and logged, normalisation.

Knows nothing about how answers are made or what is learnt from their rewards.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie45.config.errors import ConfigError, DataError
from ernie45.config.rewards import RewardsConfig
from ernie45.data.answers import Graded, Score
from ernie45.train.rewards.normalise import Normaliser
from ernie45.train.rewards.registry import build
from ernie45.train.rewards.reward import Reward

logger = logging.getLogger(__name__)

_WINDOW = 64  # answers before the share of events can stop a run


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Of a batch, in its order. values: as the judges gave them, 0.0 where the mask is False: there is an event in `scores`."""

    values: list[float]
    mask: list[bool]
    domains: list[str]
    scores: list[Score]

    def metrics(self) -> dict[str, tuple[float, int]]:
        """Name -> (sum, count): mean reward, by domain and by judge; share of events, by kind."""
        found: dict[str, tuple[float, int]] = {}

        def add(name: str, value: float, count: int = 1) -> None:
            total, number = found.get(name, (0.0, 0))
            found[name] = total + value, number + count

        kinds = {score.event for score in self.scores if score.event}
        for value, kept, domain, score in zip(self.values, self.mask, self.domains, self.scores, strict=True):
            add("reward/events", float(not kept))
            for kind in kinds:
                add(f"reward/event/{kind}", float(score.event == kind))
            if kept:
                add("reward/mean", value)
                if domain:
                    add(f"reward/domain/{domain}", value)
                for name, part in score.parts.items():
                    add(f"reward/part/{name}", part)
        return found


class RewardSystem:
    """Judges by domain. One for a process; `score` may take as long as the slowest judge."""

    def __init__(self, config: RewardsConfig, events_file: Path | None = None) -> None:
        """events_file: gets a line of JSON for each answer without a score, up to `log_events` a batch; None: the log does.
        ConfigError for a spec that cannot be built. Starts nothing yet."""
        self._config = config
        self._judges: dict[str, Reward] = {domain: build(spec) for domain, spec in config.specs().items()}
        self._normaliser = Normaliser(config.normalise, config.decay)
        self._events_file = events_file
        self.events: Counter[str] = Counter()
        self._window: list[bool] = []

    def start(self) -> "RewardSystem":
        """Check all judges, before training. ConfigError: a package lacks, an address is down, the sandbox does not hold."""
        for judge in self._judges.values():
            judge.start()
        return self

    def close(self) -> None:
        for judge in self._judges.values():
            judge.close()

    def __enter__(self) -> "RewardSystem":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_domain(self, domain: str) -> None:
        """DataError if no judge is there for it; for records, when they are read."""
        if domain not in self._judges and "" not in self._judges:
            known = ", ".join(self._judges)
            raise DataError(
                f"domain ({domain!r}) has no reward; rewards.domains has {known}: add it there, or set rewards.spec"
            )

    def score(self, batch: Sequence[Graded]) -> Rewards:
        """Each answer by the judge of its domain. DataError for a domain without one.

        ConfigError if more than `max_event_share` of the last answers got no score: a judge is down or the data is not for it.
        """
        return self.take(batch, self._judged(batch))

    def take(self, batch: Sequence[Graded], scores: list[Score]) -> Rewards:
        """`score` for scores that `grade` gave, perhaps in other processes."""
        self._count(batch, scores)
        return Rewards(
            values=[0.0 if score.value is None else score.value for score in scores],
            mask=[score.value is not None for score in scores],
            domains=[item.domain for item in batch],
            scores=scores,
        )

    def grade(self, batch: Sequence[Graded]) -> list[Score]:
        """The scores alone, as evaluations take them (`ernie45.data.answers.Grader`); nothing is counted."""
        return self._judged(batch)

    def normalise(self, rewards: Rewards) -> list[float]:
        """Values as the config says; 0.0 where there is none. For "running" this moves the averages: once for each batch."""
        return self._normaliser(rewards.values, rewards.domains, rewards.mask)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: averages and counts of events."""
        return {"normaliser": self._normaliser.state_dict(), "events": dict(self.events)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._normaliser.load_state_dict(state["normaliser"])
        self.events = Counter(state["events"])

    def _judged(self, batch: Sequence[Graded]) -> list[Score]:
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(batch):
            self.check_domain(item.domain)
            groups.setdefault(item.domain if item.domain in self._judges else "", []).append(index)
        scores: dict[int, Score] = {}
        for domain, indices in groups.items():
            judged = self._judges[domain].judge([batch[index] for index in indices])
            scores.update(zip(indices, judged, strict=True))
        return [scores[index] for index in range(len(batch))]

    def _count(self, batch: Sequence[Graded], scores: Sequence[Score]) -> None:
        without = [(item, score) for item, score in zip(batch, scores, strict=True) if score.event]
        self.events.update(score.event for _, score in without)
        self._tell(without)
        self._window = (self._window + [bool(score.event) for score in scores])[-max(_WINDOW, len(batch)) :]
        share = sum(self._window) / max(1, len(self._window))
        if len(self._window) >= _WINDOW and share > self._config.max_event_share:
            kinds = ", ".join(
                f"{kind} {number}" for kind, number in Counter(score.event for _, score in without).most_common(3)
            )
            raise ConfigError(
                f"rewards: {share:.0%} of the last {len(self._window)} answers got no score ({kinds}; the first: "
                f"{without[0][1].detail}); mend the judge or the data, or raise rewards.max_event_share"
            )

    def _tell(self, without: Sequence[tuple[Graded, Score]]) -> None:
        """Of the first of them, what is needed to see what went wrong."""
        rows = [
            {
                "event": score.event,
                "detail": score.detail,
                "domain": item.domain,
                "question": item.question,
                "reference": item.reference,
                "answer": item.answer,
            }
            for item, score in without[: self._config.log_events]
        ]
        if self._events_file is None:
            for row in rows:
                logger.warning("no score: %s", json.dumps(row, ensure_ascii=False))
            if len(without) > len(rows):
                logger.warning("no score for %d answers more of this batch", len(without) - len(rows))
        elif rows:
            with self._events_file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
