"""Pretraining batches: stretches of a global order, the same whatever reads them.

Knows nothing about models or losses.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from ernie45.config.data import CorpusConfig
from ernie45.config.errors import DataError
from ernie45.data.cutting import RecordTable, SourceRecords, joined
from ernie45.data.dataset import Dataset
from ernie45.data.labelled import Labelled
from ernie45.data.ledger import Ledger, Reading
from ernie45.data.loader import Loader
from ernie45.data.order import Alternation, GlobalOrder, Part
from ernie45.data.packing import LanguageBatch, collate
from ernie45.data.records import Document, Record
from ernie45.data.sizes import Bad, BadRecords, Encoding
from ernie45.data.source import filler
from ernie45.data.template import RecordEncoder
from ernie45.data.token_store import Fetch, Piece, build_store, num_labels
from ernie45.processor import Processor

StreamKind = Literal["all", "texts", "pictures"]


class Corpus:
    """Files as fixed-length records by source, and the global orders over them.

    Documents are tokenised once, into the folder; bad ones are counted there, too.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        processor: Processor,
        config: CorpusConfig,
        folder: Path | None,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """folder: of the run; None: a dry run, what is made is thrown away. progress: told how many of how many documents are
        tokenised.

        DataError if no document can be used, or if one is bad and data.on_bad is "stop".
        """
        self.config, self.seed = config, seed
        dataset = Dataset(paths, (Document, Record), config.format)
        self.encoding = Encoding(dataset, RecordEncoder(processor, config.encoding))
        self.store = build_store(self.encoding, folder or self._scratch(), config.workers, progress)
        self.table = RecordTable(dataset.sources, self.store, config.record_tokens, config.patch_budget)
        self.bad = BadRecords(folder)
        for bad in (*self.store.bad, *self.table.too_long):
            self.found(bad)
        if not self.table.texts and not self.table.pictures:
            raise DataError(f"data files have no document that can be used; the first: {self.bad.first_reason}")
        self.sources = tuple(sorted({**self.table.texts, **self.table.pictures}))

    def _scratch(self) -> Path:
        """A folder that goes with this object."""
        place = tempfile.mkdtemp(prefix="ernie45-")
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        return Path(place)

    def records(self, kind: StreamKind, source: str, number: int) -> tuple[Piece, ...]:
        """What a record consists of. In "all", those with pictures follow the texts of their source."""
        texts, pictures = self.table.texts.get(source), self.table.pictures.get(source)
        chosen: SourceRecords | None = pictures if kind == "pictures" else texts
        if kind == "all" and (texts is None or number >= len(texts)):
            chosen, number = pictures, number - (0 if texts is None else len(texts))
        assert chosen is not None, (kind, source, number)
        return chosen.pieces(number)

    def counts(self, kind: StreamKind) -> dict[str, int]:
        """Records of each source that an order of this kind reads."""
        tables = {
            "all": (self.table.texts, self.table.pictures),
            "texts": (self.table.texts,),
            "pictures": (self.table.pictures,),
        }
        found: dict[str, int] = {}
        for table in tables[kind]:
            for name, records in table.items():
                found[name] = found.get(name, 0) + len(records)
        return found

    def order(self, kind: StreamKind = "all", parts: Sequence[Part] | None = None) -> GlobalOrder:
        """parts: of a curriculum; None: the config's weights throughout, but for sources without records of this kind."""
        counts = self.counts(kind)
        if parts is None:
            given = self.config.source_weights()
            unknown = sorted(set(given) - set(self.sources))
            if unknown:
                raise DataError(f"data.weights ({unknown[0]}) must name a source; there are {', '.join(self.sources)}")
            parts = (Part(weights={name: weight for name, weight in given.items() if name in counts}),)
        return GlobalOrder(counts, parts, self.seed, self.config.block_records)

    def found(self, bad: Bad) -> None:
        """Count a document that cannot be used, or stop."""
        origin = self.encoding.dataset.origin(bad.index)
        reason = bad.reason if bad.reason.startswith(origin) else f"{origin}: {bad.reason}"
        if self.config.on_bad == "stop":
            raise DataError(f"{reason} (data.on_bad=skip would leave it out)")
        self.bad.add(Bad(bad.index, reason), origin)

    def describe(self) -> dict[str, Any]:
        """Facts for a dry run and the report, plain JSON types."""
        return {
            "documents": len(self.encoding.dataset) - len(self.bad),
            "bad_documents": len(self.bad),
            "tokens": int(self.store.sizes_N3[:, 0].sum()),
            "patches": int(self.store.sizes_N3[:, 1].sum()),
            "records": {"texts": self.counts("texts"), "pictures": self.counts("pictures")},
        }


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """How an order is read: none of this changes the order, or which record comes when.

    phase: a name for the ledger. num_shards: contexts of a step. shards: those that this process asks for; None: all.
    alternation: of steps of texts and steps with pictures, each with an order of its own; None: one order of everything.
    num_steps: of the phase, for those that follow it.
    """

    phase: str = "pretrain"
    num_shards: int = 1
    context_records: int = 1
    shards: tuple[int, ...] | None = None
    alternation: Alternation | None = None
    num_steps: int = 0


class StreamSource:
    """(step, shard) -> LanguageBatch: the next records of the order, shard by shard.

    Its state (the positions at a step) goes into checkpoints, so a run may go on with other ranks, shards or contexts.
    """

    def __init__(
        self,
        corpus: Corpus,
        plan: StreamPlan,
        orders: Mapping[str, GlobalOrder] | None = None,
        ledger: Ledger | None = None,
        follows: "StreamSource | None" = None,
    ) -> None:
        """orders: by kind; None: those of the corpus's weights. ledger: of the one process that keeps it. follows: the phase
        before; an order that it, or one before it, has read goes on where they have left it.
        """
        self.corpus, self.plan, self._ledger, self._follows = corpus, plan, ledger, follows
        kinds: tuple[StreamKind, ...] = ("texts", "pictures") if plan.alternation else ("all",)
        self.orders = dict(orders) if orders is not None else {kind: corpus.order(kind) for kind in kinds}
        if corpus.config.block_records % plan.context_records:
            raise DataError(
                f"context_records ({plan.context_records}) must divide data.block_records ({corpus.config.block_records})"
            )
        self._base_step = 0
        self._base: dict[str, int] | None = None  # None: where the phase before ends, which a restart may still change
        self._next_step = 0
        fetch = Fetch(corpus.encoding, corpus.store)
        self._loader: Loader[tuple[Piece, ...], list[Labelled | Bad]] = Loader(
            fetch, corpus.config.workers, corpus.config.prefetch
        )

    def __call__(self, step: int, shard: int) -> LanguageBatch:
        """One shard of a step. DataError for a document that turns out bad, if data.on_bad is "stop"."""
        self._note(step)
        pieces = self._pieces(step, shard)
        places = islice(self._places(step, shard), self.corpus.config.prefetch)
        found = self._loader(pieces, (self._pieces(*place) for place in places) if self.corpus.config.workers else ())
        weight = self._weight(step)
        items = []
        for item in found:
            if isinstance(item, Bad):
                self.corpus.found(item)
            else:
                items.append(item)
        items = items or [filler(self.corpus.encoding.encoder.processor, self.corpus.sources[0])]
        return collate(items, [weight] * len(items), 1 / self.plan.num_shards, self.corpus.sources)

    @property
    def wait_seconds(self) -> float:
        """How long callers have waited for data so far."""
        return self._loader.wait_seconds

    def positions(self, step: int) -> dict[str, int]:
        """Where each order is at the beginning of a step."""
        base = self._base
        if base is None:
            base = {kind: self._follows.end_of(order) if self._follows else 0 for kind, order in self.orders.items()}
        per_step = self.plan.num_shards * self.plan.context_records
        if self.plan.alternation is None:
            return {"all": base["all"] + (step - self._base_step) * per_step}
        now, before = (self.plan.alternation.steps_before(at) for at in (step, self._base_step))
        return {kind: base[kind] + (now[i] - before[i]) * per_step for i, kind in enumerate(("texts", "pictures"))}

    def end_of(self, order: GlobalOrder) -> int:
        """Where an order is once this phase and those before it are over."""
        for kind, own in self.orders.items():
            if own.key == order.key:
                return self.positions(self.plan.num_steps)[kind]
        return self._follows.end_of(order) if self._follows else 0

    def state_dict(self) -> dict[str, Any]:
        """The next step and its positions; nothing before the phase has begun."""
        return {"step": self._next_step, "positions": self.positions(self._next_step)} if self._next_step else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there, however the steps before were read."""
        self._base_step = self._next_step = state.get("step", 0)
        self._base = dict(state["positions"]) if state else None

    def close(self) -> None:
        """End the workers."""
        self._loader.close()

    def _kind(self, step: int) -> StreamKind:
        if self.plan.alternation is None:
            return "all"
        return "pictures" if self.plan.alternation.shows_pictures(step) else "texts"

    def _note(self, step: int) -> None:
        self._next_step = step + 1
        if self._ledger is None:
            return
        kind = self._kind(step)
        start = self.positions(step)[kind]
        end = start + self.plan.num_shards * self.plan.context_records
        order = self.orders[kind]
        place = {"kind": kind, "start": start, "end": end, "order": order.key, "digest": order.digest(start, end)}
        self._ledger.note(Reading(phase=self.plan.phase, step=step, **place))

    def _pieces(self, step: int, shard: int) -> tuple[Piece, ...]:
        kind, records = self._kind(step), self.plan.context_records
        start = self.positions(step)[kind] + shard * records
        entries = self.orders[kind].stretch(start, start + records)
        return tuple(joined([piece for entry in entries for piece in self.corpus.records(kind, entry.source, entry.number)]))

    def _places(self, step: int, shard: int) -> Iterator[tuple[int, int]]:
        """What this process will ask for after this."""
        own = sorted(self.plan.shards if self.plan.shards is not None else range(self.plan.num_shards))
        for later in count(step):
            yield from ((later, number) for number in own if later > step or number > shard)

    def _weight(self, step: int) -> float:
        """What each label counts in the loss of the step."""
        if self.corpus.config.weighting == "token_balanced":
            room = self.corpus.config.record_tokens * self.plan.context_records * self.plan.num_shards
            return 1 / room
        shards = (self._pieces(step, shard) for shard in range(self.plan.num_shards))
        return 1 / max(1, sum(num_labels(piece, self.corpus.store) for pieces in shards for piece in pieces))
