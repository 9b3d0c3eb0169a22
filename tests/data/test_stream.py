"""Pretraining reads every token once and in one order, whatever the ranks, contexts and restarts; the ledger proves it."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from ernie45.config.data import CorpusConfig
from ernie45.config.errors import ConfigError, DataError
from ernie45.config.presets import TINY_FOLDER
from ernie45.data.labelled import IGNORED, Labelled
from ernie45.data.ledger import LEDGER, Ledger, Reading, audit
from ernie45.data.order import Alternation, GlobalOrder, Part
from ernie45.data.packing import LanguageBatch
from ernie45.data.stream import Corpus, StreamPlan, StreamSource
from ernie45.data.token_store import Fetch, num_labels
from ernie45.processor import Processor
from tests.data.corpus import samples, write_corpus

RECORD = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of all lengths from two sources, an empty one among them, and conversations with pictures."""
    place, rng = tmp_path_factory.mktemp("corpus"), Random(0)
    for name, count in (("web", 40), ("books", 6)):
        lengths = [rng.choice((3, 20, 200) if name == "web" else (2000,)) for _ in range(count)]
        texts = [" ".join(str(rng.randrange(100)) for _ in range(length // 2)) for length in lengths]
        (place / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    write_corpus(place / "shown.jsonl", samples(40, skills=("read", "colour")))
    return place


def corpus_of(folder: Path, run: Path, names: str = "web books shown", **settings: Any) -> Corpus:
    config = CorpusConfig(**{"record_tokens": RECORD, "block_records": 4, **settings})
    paths = [folder / f"{name}.jsonl" for name in names.split()]
    return Corpus(paths, Processor.from_dir(TINY_FOLDER), config, run, seed=0)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return corpus_of(folder, folder / "run")


def test_records_have_every_token_once(corpus: Corpus) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    fetch = Fetch(corpus.encoding, corpus.store)
    for name, records in (*corpus.table.texts.items(), *corpus.table.pictures.items()):
        for number in range(len(records)):
            pieces = records.pieces(number)
            length = sum(piece.end - piece.start for piece in pieces)
            is_last = name in corpus.table.texts and number == len(records) - 1
            assert length == RECORD if name in corpus.table.texts and not is_last else 0 < length <= RECORD
            for piece, item in zip(pieces, fetch(pieces), strict=True):
                assert isinstance(item, Labelled)
                assert (len(item.inputs), item.num_labels) == (piece.end - piece.start, num_labels(piece, corpus.store))
                seen.update((piece.document, place) for place in range(piece.start, piece.end))
    assert set(seen.values()) == {1}
    assert len(seen) == corpus.store.sizes_N3[:, 0].sum()


def test_labels_go_over_cuts(corpus: Corpus) -> None:
    """What is behind a cut is learnt in front of it: of a document all tokens but the first are labels once."""
    fetch, records = Fetch(corpus.encoding, corpus.store), corpus.table.texts["books"]
    pieces = [piece for number in range(len(records)) for piece in records.pieces(number) if piece.document == 40]
    assert len(pieces) > 3
    items = [item for item in fetch(tuple(pieces)) if isinstance(item, Labelled)]
    learnt = [label for item in items for label in item.labels_S.tolist() if label != IGNORED]
    assert learnt == corpus.store.ids(40)[1:].tolist()
    assert learnt[-1] == corpus.encoding.encoder.processor.tokens.eos


def read(source: StreamSource, steps: range) -> list[LanguageBatch]:
    return [source(step, shard) for step in steps for shard in range(source.plan.num_shards)]


def tokens_of(batches: list[LanguageBatch]) -> list[int]:
    """Of all sequences, in an order that does not depend on how they are packed."""
    sequences = []
    for batch in batches:
        borders = batch.packed.cu_seqlens
        sequences += [batch.packed.token_ids_T[a:b].tolist() for a, b in itertools.pairwise(borders)]
    return sorted(token for sequence in sequences for token in sequence)


def test_shards_and_contexts_change_nothing_of_the_order(corpus: Corpus) -> None:
    """24 records of the order, read in three ways."""
    ways = [
        (StreamPlan(num_shards=1), 24),
        (StreamPlan(num_shards=8), 3),
        (StreamPlan(num_shards=2, context_records=4), 3),
    ]
    made = [read(StreamSource(corpus, plan), range(steps)) for plan, steps in ways]
    assert tokens_of(made[0]) == tokens_of(made[1]) == tokens_of(made[2])
    assert max(len(batch.packed) for batch in made[0]) <= RECORD
    labels = [sum(len(batch.rows_R) for batch in batches) for batches in made]
    assert labels[0] == labels[1] == labels[2]
    borders = [b - a for batch in made[2] for a, b in itertools.pairwise(batch.packed.cu_seqlens)]
    assert max(borders) == 4 * RECORD, "a long context reads a long document on"


def test_ranks_read_what_one_process_reads(corpus: Corpus) -> None:
    one = StreamSource(corpus, StreamPlan(num_shards=4))
    ranks = [StreamSource(corpus, StreamPlan(num_shards=4, shards=tuple(range(rank, 4, 2)))) for rank in range(2)]
    for step in range(3):
        for shard in range(4):
            expected, found = one(step, shard), ranks[shard % 2](step, shard)
            assert torch.equal(expected.packed.token_ids_T, found.packed.token_ids_T)
            assert torch.equal(expected.weights_R, found.weights_R)


def test_workers_change_nothing(folder: Path, corpus: Corpus) -> None:
    worked = StreamSource(corpus_of(folder, folder / "run", workers=1, weighting="mean"), StreamPlan(num_shards=2))
    plain = StreamSource(corpus_of(folder, folder / "run", weighting="mean"), StreamPlan(num_shards=2))
    try:
        for one, other in zip(read(worked, range(3)), read(plain, range(3)), strict=True):
            assert torch.equal(one.packed.token_ids_T, other.packed.token_ids_T)
            assert torch.equal(one.labels_R, other.labels_R)
    finally:
        worked.close()
    total = sum(float(batch.weights_R.sum()) for batch in read(plain, range(1)))
    assert total == pytest.approx(1.0)


def test_a_restart_with_other_ranks_reads_each_record_once(corpus: Corpus, tmp_path: Path) -> None:
    """A checkpoint at step 5, then two more steps that are lost in a crash; on with another number of shards and contexts."""
    first = StreamSource(corpus, StreamPlan(num_shards=4), ledger=Ledger(tmp_path))
    before = read(first, range(5))
    state = json.loads(json.dumps(first.state_dict()))
    read(first, range(5, 7))
    second = StreamSource(corpus, StreamPlan(num_shards=3, context_records=2), ledger=Ledger(tmp_path))
    second.load_state_dict(state)
    after = read(second, range(5, 8))
    assert second.positions(8) == {"all": 20 + 18}
    through = read(StreamSource(corpus, StreamPlan(num_shards=1)), range(38))
    assert tokens_of(before + after) == tokens_of(through)
    found = audit(tmp_path, second.orders.values())
    assert (found.problems, found.positions, found.repeated_steps, found.steps) == ([], {"all": 38}, 2, 8)


def test_phases_follow_each_other_over_a_restart(corpus: Corpus, tmp_path: Path) -> None:
    """The first phase goes on with other shards at its last step but one; the later ones begin where it really ends."""

    def phases(num_shards: int) -> list[StreamSource]:
        alternation, ledger = Alternation(text_steps=1, picture_steps=1), Ledger(tmp_path)
        other = GlobalOrder(corpus.counts("all"), [Part(weights={"web": 1})], seed=0, block=4)
        plan = StreamPlan(num_shards=num_shards, num_steps=4, phase="a")
        orders = {kind: corpus.order(kind) for kind in ("texts", "pictures")}
        a = StreamSource(corpus, plan, {"all": other}, ledger)
        b = StreamSource(corpus, replace(plan, phase="b", alternation=alternation), orders, ledger, follows=a)
        c = StreamSource(corpus, replace(plan, phase="c"), {"all": other}, ledger, follows=b)
        return [a, b, c, StreamSource(corpus, replace(plan, phase="d", alternation=alternation), orders, ledger, follows=c)]

    before, after = phases(2), phases(3)
    read(before[0], range(3))
    states = [json.loads(json.dumps(source.state_dict())) for source in before]
    assert states[1:] == [{}] * 3
    read(before[0], range(3, 4))
    for source, state in zip(after, states, strict=True):
        source.load_state_dict(state)
        read(source, range(source.state_dict().get("step", 0), 4))
    found = audit(tmp_path, [order for source in after for order in source.orders.values()])
    assert found.problems == []
    assert list(found.positions.values()) == [3 * 2 + 3 + 4 * 3, 12, 12]


PROGRAM = """
import json, sys, time
from pathlib import Path
from ernie45.config.data import CorpusConfig
from ernie45.config.presets import TINY_FOLDER
from ernie45.data.ledger import Ledger
from ernie45.data.stream import Corpus, StreamPlan, StreamSource
from ernie45.processor import Processor
folder, run = Path(sys.argv[1]), Path(sys.argv[2])
paths = [folder / f"{name}.jsonl" for name in ("web", "books", "shown")]
config = CorpusConfig(record_tokens=64, block_records=4)
corpus = Corpus(paths, Processor.from_dir(TINY_FOLDER), config, folder / "run", seed=0)
source = StreamSource(corpus, StreamPlan(num_shards=4), ledger=Ledger(run))
for step in range(1000):
    for shard in range(4):
        source(step, shard)
    if step % 5 == 4:  # after the step
        (run / "new").write_text(json.dumps(source.state_dict()))
        (run / "new").replace(run / "checkpoint.json")
    print(step, flush=True)
    time.sleep(0.01)
"""


def test_kill_minus_nine_and_another_number_of_ranks(folder: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Four shards until kill -9 between two checkpoints, then two ranks with three."""
    arguments = [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path)]
    program = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert program.stdout is not None
    for line in program.stdout:
        if int(line) == 12:
            program.send_signal(signal.SIGKILL)
    program.wait()
    program.stdout.close()
    with open(tmp_path / LEDGER, "a", encoding="utf-8") as file:
        file.write('{"phase": "pre')  # torn
    state = json.loads((tmp_path / "checkpoint.json").read_text())
    plans = [StreamPlan(num_shards=3, shards=shards) for shards in ((0, 2), (1,))]
    ranks = [StreamSource(corpus, plan, ledger=Ledger(tmp_path) if plan is plans[0] else None) for plan in plans]
    for rank in ranks:
        rank.load_state_dict(state)
        for step in range(state["step"], state["step"] + 6):
            for shard in rank.plan.shards or ():
                rank(step, shard)
    found = audit(tmp_path, [corpus.order()])
    assert (found.problems, found.positions) == ([], {"all": 4 * state["step"] + 6 * 3})
    assert found.repeated_steps > 0, "the kill came between two checkpoints"


def test_the_audit_can_fail(corpus: Corpus, tmp_path: Path) -> None:
    def problems(*readings: tuple[int, int, int], digest: str = "") -> str:
        (tmp_path / LEDGER).unlink(missing_ok=True)
        for step, start, end in readings:
            ledger = Ledger(tmp_path)
            about = {"order": corpus.order().key, "digest": digest} if digest else {}
            ledger.note(Reading(phase="p", step=step, kind="all", start=start, end=end, **about))
        return "; ".join(audit(tmp_path, [corpus.order()]).problems)

    assert problems((0, 0, 4), (1, 4, 8)) == ""
    assert problems((0, 0, 4), (1, 3, 8)) == "step 1 of p read positions 3 to 3 of all a second time"
    assert problems((0, 0, 4), (1, 6, 8)) == "step 1 of p: positions 4 to 5 of all were lost"
    assert problems((1, 0, 4), (2, 4, 8)) == "step 1 of p: steps 0 to 0 before it are missing"
    assert "read other records" in problems((0, 0, 4), digest="0" * 16)
    ledger = Ledger(tmp_path / "phases")  # a second phase with another mixture has an order of its own
    for phase, order in (("p", "1"), ("q", "2")):
        ledger.note(Reading(phase=phase, step=0, kind="all", start=0, end=4, order=order))
    phases = audit(tmp_path / "phases")
    assert (phases.problems, phases.positions) == ([], {"all (1)": 4, "all (2)": 4})
    ledger = Ledger(tmp_path / "skips")
    for step in (0, 1, 2, 1, 3, 5):  # the loss of step 2 jumps: back to 1 and over it; then killed, and on behind step 4
        ledger = Ledger(tmp_path / "skips") if step == 5 else ledger
        ledger.note(Reading(phase="p", step=step, kind="all", start=4 * step, end=4 * step + 4))
    skipped = audit(tmp_path / "skips")
    assert (skipped.problems, skipped.skipped) == ([], ["steps 2 to 2 of p", "steps 4 to 4 of p"])
    assert (skipped.steps, skipped.repeated_steps) == (4, 2)
    with pytest.raises(DataError, match="does not exist; name the run folder"):
        audit(tmp_path / "none")


def test_alternation_of_texts_and_pictures(corpus: Corpus, tmp_path: Path) -> None:
    alternation = Alternation(text_steps=2, picture_steps=1)
    source = StreamSource(corpus, StreamPlan(num_shards=2, alternation=alternation), ledger=Ledger(tmp_path))
    shows = [any(batch.packed.vision is not None for batch in read(source, range(step, step + 1))) for step in range(6)]
    assert shows == [False, False, True, False, False, True]
    assert source.positions(6) == {"texts": 8, "pictures": 4}
    assert audit(tmp_path, source.orders.values()).problems == []
    for step in range(40):
        expected = (
            sum(not alternation.shows_pictures(s) for s in range(step)),
            sum(map(alternation.shows_pictures, range(step))),
        )
        assert alternation.steps_before(step) == expected


def test_a_curriculum_goes_on_where_its_sources_are() -> None:
    counts = {"web": 7, "books": 5}
    parts = [Part(weights={"web": 3, "books": 1}, blocks=8), Part(weights={"web": 1, "books": 1})]
    order = GlobalOrder(counts, parts, seed=0)
    entries = order.stretch(0, 60)
    assert [entry.source for entry in entries[:8]].count("web") == 6
    assert abs([entry.source for entry in entries[8:]].count("web") - 26) <= 1
    for name, count in counts.items():
        own = [entry for entry in entries if entry.source == name]
        for epoch in range(len(own) // count):
            taken = own[epoch * count : (epoch + 1) * count]
            assert sorted(entry.number for entry in taken) == list(range(count))
            assert {entry.epoch for entry in taken} == {epoch}
    assert order.stretch(20, 30) == entries[20:30], "any position, without those before it"
    assert GlobalOrder(counts, parts, seed=1).stretch(0, 60) != entries


@pytest.mark.parametrize("block", [1, 4])
def test_blocks_keep_neighbours_together(block: int) -> None:
    order = GlobalOrder({"a": 10, "b": 9}, [Part(weights={})], seed=0, block=block)
    entries = order.stretch(0, 190)
    assert {entry.number for entry in entries if entry.source == "a" and entry.epoch == 0} == set(range(10))
    followed = sum(two[:2] == (one.source, one.number + 1) for one, two in itertools.pairwise(entries))
    assert followed > 80 if block == 4 else followed < 40


def test_bad_documents_are_counted(folder: Path, tmp_path: Path, corpus: Corpus) -> None:
    path = folder / "mixed.jsonl"
    shown = (folder / "shown.jsonl").read_text(encoding="utf-8").splitlines()[0]
    long = {"messages": [{"role": "user", "content": "7" * 300}, {"role": "assistant", "content": "7"}]}
    path.write_text("\n".join(['{"text": "good"}', "{bad", json.dumps(long), shown, '{"text": ""}']), encoding="utf-8")
    made = corpus_of(folder, tmp_path, "mixed")
    assert len(made.bad) == 3
    assert made.describe()["documents"] == 2
    dry = Corpus([path], made.encoding.encoder.processor, made.config, None, seed=0)
    assert dry.describe() == made.describe(), "a dry run needs no folder"
    again = corpus_of(folder, tmp_path, "mixed")
    assert len(again.bad) == 3
    lines = (tmp_path / "bad-records.jsonl").read_text().splitlines()
    assert len(lines) == 3
    with pytest.raises(DataError, match=r"mixed.jsonl:2 .*data.on_bad=skip"):
        corpus_of(folder, tmp_path, "mixed", on_bad="stop")
    pairs = folder / "pairs.jsonl"
    pairs.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"no document that can be used; the first: .*pairs.jsonl:1 is of the form pairs"):
        corpus_of(folder, tmp_path, "pairs")
    assert len(corpus.bad) == 0


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"data.context_records \(3\) must divide data.block_records \(16\)"):
        CorpusConfig(context_records=3)
    with pytest.raises(ConfigError, match="data.weighting"):
        CorpusConfig(weighting="sample")
    with pytest.raises(DataError, match=r"weights \(nets\) must name a source"):
        GlobalOrder({"web": 3}, [Part(weights={"nets": 1})], seed=0)
