"""Our model against transformers' ernie4_5_vl_moe: logits, gradients and greedy generation, in fp32."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench.peers import transformers_inputs, transformers_positions
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ModelConfig
from ernie45.model.batch import pack
from ernie45.model.multimodal import ErnieModel

LOGIT_TOLERANCE = 1e-5
SEQUENCES = {
    "text": [24],
    "one image": [5, (1, 4, 6), 7],
    "images of several sizes": [3, (1, 4, 6), 2, (1, 8, 2), 5, (1, 2, 2), 4],
    "short video": [4, (6, 4, 8), 6],
    "image and video": [4, (1, 6, 4), 3, (4, 4, 8), 6],
    "video before image": [4, (4, 4, 8), 3, (1, 6, 4), 6],
    "picture first and last": [(1, 4, 4), 3, (1, 2, 6)],
}


def our_logits(model: ErnieModel, *inputs: ModelInput) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(pack(inputs)).hidden_TD)


def their_logits(theirs, config: ModelConfig, *inputs: ModelInput, positions: bool = False) -> torch.Tensor:
    arguments = transformers_inputs(config, inputs)
    if positions:
        arguments["position_ids"] = transformers_positions(inputs)
    with torch.no_grad():
        return theirs(**arguments).logits.flatten(0, 1)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("variant", ["tied", "untied", "no shared experts", "every second layer"])
def test_logits(make_twins: Callable, make_sequence: Callable, name: str, variant: str) -> None:
    changes = {
        "tied": {},
        "untied": {"tie_word_embeddings": False},
        "no shared experts": {"shared_ffn_size": 0},
        "every second layer": {"first_moe_layer": 2},
    }[variant]
    ours, theirs, config = make_twins(**changes)
    sequence = make_sequence(SEQUENCES[name], seed=3)
    expected = their_logits(theirs, config, sequence)
    assert expected.abs().max() > 0.5, "the reference must say something"
    torch.testing.assert_close(our_logits(ours, sequence), expected, rtol=0, atol=LOGIT_TOLERANCE)


def test_batch_of_theirs_is_one_pack_of_ours(twins, make_sequence: Callable) -> None:
    batch = [make_sequence([5, (1, 4, 6), 7], seed=seed) for seed in range(3)]
    expected = their_logits(twins.theirs, twins.config, *batch)
    torch.testing.assert_close(our_logits(twins.ours, *batch), expected, rtol=0, atol=LOGIT_TOLERANCE)


def test_packed_equals_one_at_a_time(twins, make_sequence: Callable) -> None:
    batch = [make_sequence(parts, seed=seed) for seed, parts in enumerate(SEQUENCES.values())]
    alone = torch.cat([our_logits(twins.ours, sequence) for sequence in batch])
    torch.testing.assert_close(our_logits(twins.ours, *batch), alone, rtol=0, atol=LOGIT_TOLERANCE)


def test_long_video_follows_baidu(twins, make_sequence: Callable) -> None:
    """transformers lets the text after a long video fall inside the video's own time span; Baidu's code does not.

    12 frames of 4 x 4 patches are 6 steps of 2 x 2 tokens: after 3 text tokens the span is 3 ... 8 and text goes on at 9.
    """
    sequence = make_sequence([2, (12, 4, 4), 5])
    assert sequence.positions[3 + 24].tolist() == [9, 9, 9]
    assert sequence.next_position == 9 + 6
    theirs_with_ours = their_logits(twins.theirs, twins.config, sequence, positions=True)
    ours = our_logits(twins.ours, sequence)
    torch.testing.assert_close(ours, theirs_with_ours, rtol=0, atol=LOGIT_TOLERANCE)
    theirs_alone = their_logits(twins.theirs, twins.config, sequence)
    assert (theirs_alone - ours).abs().max() > 1e-2, "transformers has changed its positions: drop the special case"


def test_gradients(twins, make_sequence: Callable, tmp_path) -> None:
    """Every gradient, brought into their names by our own converter, within 1e-5 of the largest in its tensor."""
    from ernie45.checkpoint import load_model

    ours, theirs, config = twins
    sequence = make_sequence([6, (1, 4, 6), 7, (4, 4, 4), 5], seed=5)
    labels = torch.from_numpy(np.random.default_rng(0).integers(3, 100, len(sequence)))

    theirs.zero_grad()
    their_output = theirs(**transformers_inputs(config, [sequence])).logits[0]
    torch.nn.functional.cross_entropy(their_output, labels).backward()
    ours.zero_grad()
    our_output = ours.logits(ours(pack([sequence])).hidden_TD)
    torch.nn.functional.cross_entropy(our_output, labels).backward()

    # Their gradients travel the road of weights: saved as a checkpoint and read by our loader.
    with torch.no_grad():
        kept = {name: parameter.clone() for name, parameter in theirs.named_parameters()}
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        theirs.save_pretrained(tmp_path)
        for name, parameter in theirs.named_parameters():
            parameter.copy_(kept[name])
    expected = dict(load_model(tmp_path).named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        scale = expected[name].abs().max()
        # A key's bias turns every score of a row by the same amount, so softmax leaves only rounding noise of it.
        slack = 1e-5 * scale + (1e-7 if "qkv.bias" in name else 0)
        assert (parameter.grad - expected[name]).abs().max() <= slack, (name, scale)


def test_generation_with_their_cache(twins, make_sequence: Callable) -> None:
    """Greedy tokens equal theirs, with our cache against our own full recomputation in tests/engine."""
    sequence = make_sequence([5, (1, 4, 6), 7], seed=11)
    arguments = transformers_inputs(twins.config, [sequence])
    theirs = twins.theirs.generate(**arguments, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = theirs[0, len(sequence) :].tolist()
    ids, position, tokens = list(sequence.token_ids), sequence.next_position, []
    for _ in range(8):
        grown = _extended(sequence, ids, position)
        token = int(our_logits(twins.ours, grown)[-1].argmax())
        tokens.append(token)
        ids.append(token)
    assert tokens == expected


def _extended(sequence: ModelInput, ids: list[int], start: int) -> ModelInput:
    """The sequence with generated text tokens after it."""
    extra = len(ids) - len(sequence)
    positions = np.concatenate([sequence.positions, np.repeat(np.arange(start, start + extra)[:, None], 3, axis=1)])
    return ModelInput(
        token_ids=np.array(ids, np.int64),
        is_vision=np.concatenate([sequence.is_vision, np.zeros(extra, bool)]),
        positions=positions,
        patches=sequence.patches,
        media=sequence.media,
        next_position=start + extra,
    )
