"""Two-step look-ups over a wide vocabulary against a whole sort."""

import pytest
import torch

from ernie45.engine.blocks import first_argmax, likeliest


@pytest.mark.parametrize("width", [1, 3, 128, 4000])
@pytest.mark.parametrize("vocab_size", [5, 64 * 600, 64 * 600 + 1, 64 * 600 + 63])
def test_the_likeliest_are_those_of_a_sort(vocab_size: int, width: int):
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(6)]).float()  # no two are equal
    logits_RV[1, -3:] += 1e6  # at the end, behind the last whole block
    logits_RV[2, : vocab_size // 3] -= 1e6
    expected_RV = logits_RV.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(likeliest(logits_RV, width), expected_RV[:, :width])


def test_forbidden_tokens_fill_up_without_inventing_any():
    logits_RV = torch.full((2, 64 * 600 + 5), -torch.inf)
    logits_RV[0, [7, 64 * 600 + 4]] = torch.tensor([1.0, 2.0])
    logits_RV[1, 64 * 600 + 2] = 0.0
    ids_RC = likeliest(logits_RV, 100)
    assert ids_RC[0, :2].tolist() == [64 * 600 + 4, 7]
    assert ids_RC[1, 0] == 64 * 600 + 2
    assert all(len(set(row)) == 100 and max(row) < 64 * 600 + 5 for row in ids_RC.tolist())
    assert first_argmax(logits_RV).tolist() == [64 * 600 + 4, 64 * 600 + 2]
