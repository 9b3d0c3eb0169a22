"""Batches of packed records from files: a pure function of settings, step and shard, made ahead in worker processes.

Knows nothing about models or losses.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from ernie45.config.errors import DataError
from ernie45.data.document import begin_id
from ernie45.data.labelled import IGNORED, Labelled
from ernie45.data.loader import Loader
from ernie45.data.packing import LanguageBatch, collate
from ernie45.data.plan import Budget, fullness, plan_packs
from ernie45.data.shuffle import RecordOrder, permutation
from ernie45.data.sizes import Bad, BadRecords, Encoding, measure_all
from ernie45.processor import Processor

Pack = tuple[int, ...]


class PackPlan:
    """The packs of a data set in the order in which steps take them, chunk after chunk without end."""

    def __init__(self, order: RecordOrder, sizes_N2: np.ndarray, budget: Budget, window: int, seed: int) -> None:
        self._order, self._sizes, self.budget, self._window, self._seed = order, sizes_N2, budget, window, seed
        self._chunks: list[int] = [0]  # packs before each chunk
        self._kept: dict[int, list[Pack]] = {}

    def __getitem__(self, number: int) -> Pack:
        """The records of a pack."""
        while self._chunks[-1] <= number:
            self._chunks.append(self._chunks[-1] + len(self.chunk(len(self._chunks) - 1)))
        chunk = int(np.searchsorted(self._chunks, number, side="right")) - 1
        return self.chunk(chunk)[number - self._chunks[chunk]]

    def chunk(self, number: int) -> list[Pack]:
        """The packs of one chunk, shuffled, as planning puts large records first."""
        if number not in self._kept:
            self._kept = {known: packs for known, packs in self._kept.items() if known >= number - 1}
            planned = plan_packs(self._order.chunk(number).tolist(), self._sizes, self.budget, self._window)
            places = permutation(len(planned), self._seed, "packs", number).tolist()
            self._kept[number] = [tuple(planned[place]) for place in places]
        return self._kept[number]


class PackedSource:
    """(step, shard) -> LanguageBatch. Step s has the packs s * num_shards up to (s + 1) * num_shards of the plan.

    All records are measured first (kept in `folder` for the next time); those that are bad are written to bad-records.jsonl
    there. A record that turns out bad only when it is encoded leaves its pack emptier; what its labels would have counted is
    not given to others.
    """

    def __init__(
        self,
        encoding: Encoding,
        *,
        seed: int,
        num_shards: int,
        shards: Sequence[int] | None = None,
        folder: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """shards: those that will be asked for here, for making them ahead; None: all. folder: of the run. progress: told how
        many of how many records are measured.

        DataError if no record is good, or there are fewer than one step needs.
        """
        config = encoding.encoder.config
        self._encoding, self._config, self._num_shards = encoding, config, num_shards
        self._shards = sorted(shards if shards is not None else range(num_shards))
        self.bad = BadRecords(folder)
        self.table = measure_all(encoding, config.workers, folder, progress)
        for bad in self.table.bad:
            self._found(bad)
        sources = {name: own for name, every in encoding.dataset.sources.items() if len(own := every[self.table.good[every]])}
        if not sources:
            raise DataError(f"data files have no record that can be used; the first: {self.bad.first_reason}")
        self.sources = tuple(sorted(sources))
        self._budget = Budget(config.token_budget, config.patch_budget)
        self._refuse_too_many_patches()
        self.order = RecordOrder(sources, config.source_weights(), seed)
        self.plan = PackPlan(self.order, self.table.sizes_N3[:, :2], self._budget, config.window, seed)
        first = self.plan.chunk(0)
        if len(first) < num_shards:
            raise DataError(
                f"data files have {self.order.num_records} records that can be used, which make {len(first)} packs of "
                f"{config.token_budget} tokens, fewer than the {num_shards} of one step; lower data.token_budget or "
                "loop.num_shards, or add records"
            )
        self._loader: Loader[Pack, list[Labelled | Bad]] = Loader(encoding.encode, config.workers, config.prefetch)

    def __call__(self, step: int, shard: int) -> LanguageBatch:
        """One shard of a step. DataError for a bad record if data.on_bad is "stop"."""
        packs = [self.plan[step * self._num_shards + number] for number in range(self._num_shards)]
        pack = packs[shard]
        upcoming = (self.plan[number] for number in islice(self._numbers(step, shard), self._config.prefetch))
        found = self._loader(pack, upcoming if self._config.workers else ())
        weights = self._weights(packs)
        items, counts = [], []
        for index, item in zip(pack, found, strict=True):
            if isinstance(item, Bad):
                self._found(item)
            else:
                items.append(item)
                counts.append(weights[index])
        if not items:
            items, counts = [filler(self._encoding.encoder.processor, self.sources[0])], [0.0]
        return collate(items, counts, 1 / self._num_shards, self.sources)

    @property
    def wait_seconds(self) -> float:
        """How long callers have waited for data so far."""
        return self._loader.wait_seconds

    @property
    def steps_per_epoch(self) -> float:
        """Steps until every record was seen once (without weights)."""
        return len(self.plan.chunk(0)) / self._num_shards

    def describe(self) -> dict[str, Any]:
        """Facts for a dry run and the report, plain JSON types."""
        packs, sizes_N3 = self.plan.chunk(0), self.table.sizes_N3
        return {
            "records": int(self.order.num_records),
            "bad_records": len(self.bad),
            "tokens": int(sizes_N3[:, 0].sum()),
            "labels": int(sizes_N3[:, 2].sum()),
            "patches": int(sizes_N3[:, 1].sum()),
            "packs": len(packs),
            "fullness": round(fullness(packs, sizes_N3, self._budget), 4),
            "steps_per_epoch": round(self.steps_per_epoch, 2),
        }

    def close(self) -> None:
        """End the workers."""
        self._loader.close()

    def _numbers(self, step: int, shard: int) -> Iterator[int]:
        """The packs that this process will ask for after this one."""
        for later in count(step):
            for own in self._shards:
                if later > step or own > shard:
                    yield later * self._num_shards + own

    def _found(self, bad: Bad) -> None:
        if self._config.on_bad == "stop":
            raise DataError(f"{bad.reason} (data.on_bad=skip would leave the record out)")
        self.bad.add(bad, self._encoding.dataset.origin(bad.index))

    def _refuse_too_many_patches(self) -> None:
        """They are bad records, too: no pack can hold them."""
        patches = self.table.sizes_N3[:, 1]
        for index in np.flatnonzero(patches > self._budget.patches).tolist() if self._budget.patches else ():
            origin = self._encoding.dataset.origin(index)
            rule = f"more than the {self._budget.patches} of a pack; shrink its pictures or raise data.patch_budget"
            self._found(Bad(index, f"{origin} has {patches[index]} patches, {rule}"))
            self.table.sizes_N3[index] = 0

    def _weights(self, packs: Sequence[Pack]) -> dict[int, float]:
        """What each label of a record counts in the loss of the step."""
        records = [index for pack in packs for index in pack]
        labels = self.table.sizes_N3[:, 2]
        if self._config.weighting == "token_balanced":
            return dict.fromkeys(records, 1 / (self._config.token_budget * self._num_shards))
        if self._config.weighting == "mean":
            return dict.fromkeys(records, 1 / float(labels[records].sum()))
        return {index: 1 / (len(records) * float(labels[index])) for index in records}


def filler(processor: Processor, source: str = "") -> Labelled:
    """A sequence of two tokens without labels, for a pack whose records were all bad: a step has all its shards."""
    empty = processor.encode_ids([begin_id(processor), processor.tokens.eos])
    return Labelled(empty, np.full(len(empty), IGNORED, dtype=np.int64), source)
