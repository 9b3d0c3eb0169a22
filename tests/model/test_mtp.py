"""The prediction module with pages of its own: in any chunks the same as over the whole sequence at once."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from ernie45.config.model import SpecialTokens
from ernie45.model.batch import PackedBatch, pool_rows
from ernie45.model.cache import CacheStep, PagedKVCache
from ernie45.model.multimodal import ErnieModel
from tests.small_model import small_config

CONFIG = small_config(
    expert_pools=(), shared_ffn_size=0, vision=None, tokens=SpecialTokens(), num_mtp_layers=1, max_position_embeddings=128
)
LENGTH, PAGE_SIZE = 23, 4


def batch_of(token_ids: torch.Tensor, start: int, end: int) -> PackedBatch:
    text, vision = pool_rows(torch.zeros(end - start, dtype=torch.bool).numpy(), "cpu")
    return PackedBatch(
        token_ids_T=token_ids[start:end],
        positions_TX=torch.arange(start, end)[:, None].expand(-1, 3),
        cu_seqlens=(0, end - start),
        text_rows=text,
        vision_rows=vision,
    )


@pytest.mark.parametrize("borders", [(0, 23), (0, 7, 8, 9, 20, 23), tuple(range(24))])
@torch.no_grad()
def test_chunks_equal_the_whole(borders: Sequence[int]) -> None:
    model = ErnieModel(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    token_ids = torch.randint(0, 96, (LENGTH + 1,), generator=torch.Generator().manual_seed(1))
    whole = batch_of(token_ids, 0, LENGTH)
    expected = model.predict_ahead(0, token_ids[1:], model(whole).pre_norm_TD, whole)
    cache = PagedKVCache(CONFIG, num_pages=9, page_size=PAGE_SIZE, with_mtp=True)
    pages = torch.tensor([8, 2, 5, 0, 7, 3])
    found = []
    for start, end in pairwise(borders):
        batch, places = batch_of(token_ids, start, end), torch.arange(start, end)
        slots = pages[places // PAGE_SIZE] * PAGE_SIZE + places % PAGE_SIZE
        step = CacheStep(cache=cache, slots_T=slots, page_table_BN=pages[None], context_lens=(end,))
        previous = model(batch, cache=step).pre_norm_TD
        found.append(model.predict_ahead(0, token_ids[start + 1 : end + 1], previous, batch, cache=step).hidden_TD)
    torch.testing.assert_close(torch.cat(found), expected.hidden_TD, rtol=0, atol=1e-5)


def test_the_modules_pages_are_made_only_when_asked_for() -> None:
    assert len(PagedKVCache(CONFIG, num_pages=3, page_size=2).keys_LNSJK) == 2
    cache = PagedKVCache(CONFIG, num_pages=3, page_size=2, with_mtp=True)
    assert len(cache.keys_LNSJK) == 3
    page_bytes = PagedKVCache.bytes_per_page(CONFIG, 2, torch.float32, with_mtp=True)
    assert page_bytes * 3 == cache.keys_LNSJK.nbytes + cache.values_LNSJK.nbytes
