"""Packed batches from files: pure, full, masked; the loss depends neither on packing nor on the number of shards."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie45.checkpoint import load_model
from ernie45.config.data import DataConfig
from ernie45.config.errors import DataError
from ernie45.config.presets import TINY_FOLDER
from ernie45.config.train import RouterConfig
from ernie45.data.dataset import Dataset
from ernie45.data.labelled import Labelled
from ernie45.data.packing import LanguageBatch, collate
from ernie45.data.records import Record
from ernie45.data.sizes import BAD_RECORDS, Bad, BadRecords, Encoding
from ernie45.data.source import PackedSource
from ernie45.data.template import RecordEncoder
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.train.objectives.language import language_forward, language_loss
from tests.data.corpus import samples, write_corpus

NO_ROUTERS = RouterConfig(aux_weight=0, z_weight=0)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_dir(TINY_FOLDER)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("set") / "set.jsonl", samples(60, seed=3))


@pytest.fixture(scope="module")
def make(corpus: Path, processor: Processor) -> Callable[..., PackedSource]:
    def made(
        paths: tuple[Path, ...] = (corpus,), num_shards: int = 2, folder: Path | None = None, **settings: Any
    ) -> PackedSource:
        config = DataConfig(**{"token_budget": 400, **settings})
        encoding = Encoding(Dataset(paths, (Record,)), RecordEncoder(processor, config))
        return PackedSource(encoding, seed=0, num_shards=num_shards, folder=folder)

    return made


def same(one: LanguageBatch, other: LanguageBatch) -> bool:
    pictures = [batch.packed.vision.patches_PC for batch in (one, other) if batch.packed.vision is not None]
    return (
        torch.equal(one.packed.token_ids_T, other.packed.token_ids_T)
        and torch.equal(one.weights_R, other.weights_R)
        and (len(pictures) != 2 or torch.equal(*pictures))
    )


def test_a_batch_is_a_pure_function_of_its_place(make: Callable[..., PackedSource]) -> None:
    source, again = make(), make()
    source(7, 1)
    for step in (0, 5, 40):
        assert same(source(step, 1), again(step, 1))
    assert not same(source(0, 0), source(0, 1))
    with_workers = make(workers=1, prefetch=2)
    try:
        for step in range(3):
            for shard in range(2):
                assert same(source(step, shard), with_workers(step, shard))
    finally:
        with_workers.close()


def test_an_epoch_has_every_record_once_and_the_next_another_order(make: Callable[..., PackedSource]) -> None:
    source = make(num_shards=1)
    per_epoch = int(source.steps_per_epoch)
    for epoch in range(2):
        packs = [source.plan[number] for number in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
        assert sorted(record for pack in packs for record in pack) == list(range(60))
    assert source.plan.chunk(0) != source.plan.chunk(1)
    assert source.describe()["fullness"] > 0.85, "the last pack of so few holds a rest"
    assert source.describe()["records"] == 60


def _items(source: PackedSource, count: int) -> list[list[Labelled]]:
    """The sequences of the first packs."""
    found = [source._encoding.encode(source.plan[number]) for number in range(count)]
    assert all(isinstance(item, Labelled) for pack in found for item in pack)
    return found  # type: ignore[return-value]


def total_loss(model: ErnieModel, batches: list[LanguageBatch]) -> tuple[float, torch.Tensor]:
    """Loss of the step, and the gradient of some parameter of every kind."""
    model.zero_grad()
    value = 0.0
    for batch in batches:
        loss = language_loss(language_forward(model, batch), batch, NO_ROUTERS).loss
        loss.backward()
        value += loss.item()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return value, torch.cat(grads)


@pytest.mark.parametrize("weighting", ["token_balanced", "mean", "sample"])
def test_packed_loss_is_unpacked_loss_and_shards_do_not_matter(make: Callable[..., PackedSource], weighting: str) -> None:
    """8 packs as the 8 shards of a step; as one shard; and every sequence by itself."""
    model = load_model(TINY_FOLDER, dtype=torch.float32)
    source = make(num_shards=8, weighting=weighting, token_budget=120)
    value, grads = total_loss(model, [source(0, shard) for shard in range(8)])
    packs = [source.plan[number] for number in range(8)]
    weights = source._weights(packs)
    made = [item for pack in _items(source, 8) for item in pack]
    items = [(item, weights[index]) for index, item in zip((index for pack in packs for index in pack), made, strict=True)]
    whole = [collate([item for item, _ in items], [weight for _, weight in items], 1.0)]
    single = [collate([item], [weight], 1 / len(items)) for item, weight in items]
    for other in (whole, single):
        other_value, other_grads = total_loss(model, other)
        assert other_value == pytest.approx(value, rel=1e-5)
        assert torch.allclose(other_grads, grads, rtol=1e-3, atol=1e-6 * float(grads.abs().max()))
    expected = {"mean": 1.0, "sample": 1.0}
    if weighting in expected:
        summed = sum(float(batch.weights_R.sum()) for batch in single)
        assert summed == pytest.approx(expected[weighting], rel=1e-5)


def test_documents_never_see_each_other(make: Callable[..., PackedSource]) -> None:
    """The hidden states of a sequence are the same whatever stands beside it."""
    model = load_model(TINY_FOLDER, dtype=torch.float32)
    items = _items(make(), 1)[0]
    beside = collate(items, [1.0] * len(items), 1.0)
    with torch.no_grad():
        together = language_forward(model, beside).hidden_RD
        alone = {tuple(item.inputs.token_ids): language_forward(model, collate([item], [1.0], 1.0)).hidden_RD for item in items}
    start = 0
    for first, last in zip(beside.packed.cu_seqlens, beside.packed.cu_seqlens[1:], strict=False):
        expected = alone[tuple(beside.packed.token_ids_T[first:last].tolist())]
        assert torch.allclose(together[start : start + len(expected)], expected, atol=1e-5)
        start += len(expected)


def test_bad_records_are_counted_logged_and_left_out(make: Callable[..., PackedSource], corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_text(encoding="utf-8").splitlines()[:20]
    lines[3] = "{broken"
    lines[5] = json.dumps({"messages": [{"role": "user", "content": "no answer"}]})
    lines[7] = json.dumps({"messages": [{"role": "user", "content": "1" * 900}, {"role": "assistant", "content": "2"}]})
    bad = corpus.parent / "bad.jsonl"
    bad.write_text("\n".join(lines), encoding="utf-8")
    for _ in range(2):  # the second time from what the first has left in the folder
        source = make((bad,), folder=tmp_path)
        assert len(source.bad) == 3
        records = [record for pack in source.plan.chunk(0) for record in pack]
        assert sorted(records) == [number for number in range(20) if number not in (3, 5, 7)]
        logged = [json.loads(line) for line in (tmp_path / BAD_RECORDS).read_text().splitlines()]
        assert [entry["record"] for entry in logged] == [f"{bad}:{line}" for line in (4, 6, 8)]
        assert "more than the context of 400" in logged[2]["reason"]
    logs = [BadRecords(tmp_path / "shared") for _ in range(2)]  # two ranks find the same, and one finds more
    for index in (1, 2, 2, 3):
        for log in logs[: 1 if index == 3 else 2]:
            log.add(Bad(index, "why"), f"x:{index}")
    logged = [json.loads(line)["record"] for line in (tmp_path / "shared" / BAD_RECORDS).read_text().splitlines()]
    assert logged == ["x:1", "x:2", "x:3"]
    with pytest.raises(DataError, match=r"bad.jsonl:4 is not JSON.*data.on_bad=skip"):
        make((bad,), on_bad="stop")


def test_a_picture_that_breaks_later_leaves_a_hole(make: Callable[..., PackedSource], tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "set.jsonl", samples(12, seed=1, skills=("read",)))
    for picture in tmp_path.glob("*.png"):  # the header is whole
        picture.write_bytes(picture.read_bytes()[:-30])
    source = make((path,), num_shards=1, folder=tmp_path)
    assert len(source.bad) == 0
    batch = source(0, 0)
    assert len(source.bad) == len(source.plan[0])
    assert (len(batch.packed), len(batch.rows_R)) == (2, 0), "a sequence of two tokens without labels stands in"
    model = load_model(TINY_FOLDER, dtype=torch.float32)
    assert language_loss(language_forward(model, batch), batch, NO_ROUTERS).loss.item() == 0
    with pytest.raises(DataError, match=r"set.jsonl:\d+: messages"):
        make((path,), num_shards=1, on_bad="stop")(0, 0)


def test_sources_and_their_weights(make: Callable[..., PackedSource], corpus: Path) -> None:
    sums = corpus.parent / "sums.csv"
    sums.write_text("question,answer\n" + "".join(f"What is {n}+1?,{n + 1}\n" for n in range(10)), encoding="utf-8")
    source = make((corpus, sums), weights=("set=1", "sums=3"))
    assert source.sources == ("set", "sums")
    records = source.order.chunk(0)
    assert abs((records >= 60).mean() - 0.75) < 0.02
    found = set()
    for step in range(int(source.steps_per_epoch)):
        batch = source(step, 0)
        assert batch.sources == ("set", "sums")
        assert batch.source_R is not None
        found |= set(batch.source_R.tolist())
    assert found == {0, 1}


def test_too_few_records_or_none(make: Callable[..., PackedSource], corpus: Path) -> None:
    with pytest.raises(DataError, match=r"60 records that can be used, which make \d+ packs of 400 tokens, fewer than the 99"):
        make(num_shards=99)
    none = corpus.parent / "none.jsonl"
    none.write_text('{"a": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match="no record that can be used; the first: .*none.jsonl:1"):
        make((none,))


def test_patches_have_a_budget_of_their_own(make: Callable[..., PackedSource]) -> None:
    source = make(patch_budget=64)
    for number in range(10):
        assert source.table.sizes_N3[list(source.plan[number]), 1].sum() <= 64
    few = make(patch_budget=20)
    assert len(few.bad) > 0
    assert "patches, more than the 20 of a pack" in few.bad.first_reason


def test_settings_are_checked() -> None:
    for settings, message in (
        ({"loss_on": "question"}, "data.loss_on"),
        ({"context": 9, "token_budget": 5}, "data.context"),
        ({"weights": ("a=0",)}, "NAME=WEIGHT"),
        ({"workers": -1}, "data.workers"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(DataConfig(), **settings)
