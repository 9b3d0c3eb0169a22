"""Pairs as batches: what is checked, what is packed where, and in which order pairs come."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ernie45.config.data import DataConfig
from ernie45.config.errors import DataError
from ernie45.data.labelled import IGNORED
from ernie45.data.preference import PairBatches, PairSet, collate_pairs, encode_pair
from ernie45.data.records import Pair
from ernie45.data.template import RecordEncoder
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.model import tiny_processor
from ernie45.data.tiny.preference import preference_pairs
from ernie45.data.tiny.strips import StripWriter


def said(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "assistant", "content": text},)


PAIR = Pair(prompt=({"role": "user", "content": "What is 2+3?"},), chosen=said("5"), rejected=said("6"), origin="a.jsonl:7")


@pytest.fixture(scope="module")
def encoder() -> RecordEncoder:
    return RecordEncoder(tiny_processor(), DataConfig())


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return preference_pairs("test", 10, StripWriter(training_digits("fit")))


def test_labels_are_the_two_answers(encoder: RecordEncoder) -> None:
    encoded, decode = encode_pair(PAIR, encoder.encode), tiny_processor().tokenizer.decode
    for side, answer in ((encoded.chosen, "5"), (encoded.rejected, "6")):
        assert decode([int(label) for label in side.labels_S if label != IGNORED][:-1]).strip() == answer
    assert encoded.margin == 1.0
    assert encode_pair(replace(PAIR, margin=2.5), encoder.encode).margin == 2.5


def test_the_key_changes_with_what_the_model_sees(encoder: RecordEncoder, pairs: list[Pair]) -> None:
    encoded = encode_pair(PAIR, encoder.encode)
    assert encoded.key == encode_pair(replace(PAIR, origin="b.jsonl:1"), encoder.encode).key
    assert encoded.key != encode_pair(replace(PAIR, rejected=said("7")), encoder.encode).key
    picture = next(encode_pair(pair, encoder.encode) for pair in pairs if pair.source == "short")
    changed = picture.chosen.inputs.patches.copy()
    changed[0, 0] ^= 1
    other = picture.chosen._replace(inputs=replace(picture.chosen.inputs, patches=changed))
    assert picture._replace(chosen=other).key != picture.key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ()}, "a.jsonl:7: prompt is empty"),
        ({"rejected": said("5")}, "a.jsonl:7: chosen and rejected are equal"),
        ({"rejected": said("5 ")[:1], "chosen": said("5" * 5000)}, "a.jsonl:7 has 50[0-9]+ tokens, more than the context"),
    ],
)
def test_bad_pairs_name_their_line(encoder: RecordEncoder, change: dict, message: str) -> None:
    bad = replace(PAIR, **change)
    with pytest.raises(DataError, match=message):
        PairSet([PAIR, bad], encoder.encode, skip_bad=False)
    found = PairSet([bad, PAIR], encoder.encode, skip_bad=True)
    assert (len(found), len(found.skipped)) == (1, 1)
    with pytest.raises(DataError, match=r"pairs \(0 of 1 can be used\)"):
        PairSet([bad], encoder.encode, skip_bad=True)


def test_packed_rows_know_their_answer(encoder: RecordEncoder, pairs: list[Pair]) -> None:
    """Sequences are sorted for attention; each labelled row must still be of the right pair and side."""
    encoded = [encode_pair(pair, encoder.encode) for pair in pairs]
    batch = collate_pairs(encoded, (0.1, 0.25), 0.5)
    assert len(batch) == 10
    for number, pair in enumerate(encoded):
        for place, side in enumerate((pair.chosen, pair.rejected)):
            rows = batch.sequence_R == 2 * number + place
            labels = side.labels_S[side.labels_S != IGNORED]
            assert batch.language.labels_R[rows].tolist() == labels.tolist()
            assert (batch.language.weights_R[rows] == (0.0 if place else 0.25)).all()
            last = int(batch.last_rows_B2[number, place])
            start = batch.packed.cu_seqlens[batch.packed.cu_seqlens.index(last + 1) - 1]
            assert batch.packed.token_ids_T[start : last + 1].tolist() == side.inputs.token_ids.tolist()
    assert len(batch.packed.cu_seqlens) == 21


def test_every_pair_once_a_pass_and_shards_share_a_step(encoder: RecordEncoder, pairs: list[Pair]) -> None:
    found = PairSet(pairs, encoder.encode, skip_bad=False)
    one, three = PairBatches(found, 4, 1, seed=3), PairBatches(found, 4, 3, seed=3)
    for start in (0, 5):
        seen = Counter(place for step in range(start, start + 5) for place in one.places(step))
        assert seen == dict.fromkeys(range(10), 2)
    assert one.places(0) != PairBatches(found, 4, 1, seed=4).places(0)
    assert one.places(7) == PairBatches(found, 4, 1, seed=3).places(7), "whatever was asked before"
    for step in (0, 2):
        whole, shards = one(step, 0), [three(step, shard) for shard in range(3)]
        assert sum(map(len, shards)) == len(whole) == 4
        assert {shard.pair_weight for shard in shards} == {0.25}
        assert {shard.token_weight for shard in shards} == {whole.token_weight}
        total = sum(shard.language.weights_R.sum().item() for shard in shards)
        assert total == pytest.approx(1.0)
        assert sum(int(shard.language.labels_R.sum()) for shard in shards) == int(whole.language.labels_R.sum())


def test_references_follow_their_pairs(encoder: RecordEncoder, pairs: list[Pair]) -> None:
    batches = PairBatches(PairSet(pairs, encoder.encode, skip_bad=False), 4, 2, seed=0)
    batches.reference = {fact.key: (float(fact.index), -float(fact.index)) for fact in batches.pairs.facts}
    batch = batches(1, 1)
    assert batch.reference_B2 is not None
    expected = [batches.pairs.facts[place].index for place in batches.places(1)][1::2]
    torch.testing.assert_close(batch.reference_B2, torch.tensor([[i, -i] for i in expected], dtype=torch.float32))


def test_too_few_pairs(encoder: RecordEncoder, pairs: list[Pair]) -> None:
    found = PairSet(pairs, encoder.encode, skip_bad=False)
    with pytest.raises(DataError, match=r"pairs \(10 usable\) must be at least pairs.pairs_per_step \(16\)"):
        PairBatches(found, 16, 1, seed=0)
    with pytest.raises(DataError, match=r"pairs_per_step \(2\) must be at least loop.num_shards \(4\)"):
        PairBatches(found, 2, 4, seed=0)


def test_sequences_see_only_their_own_prompt(encoder: RecordEncoder) -> None:
    batch = collate_pairs([encode_pair(PAIR, encoder.encode)] * 2, (0.5, 1.0), 1.0)
    lengths = np.diff(batch.packed.cu_seqlens)
    assert len(set(lengths.tolist())) == 1
    assert batch.packed.positions_TX[:, 0].tolist() == list(range(lengths[0])) * 4
