"""The model's own promises: cache, precision, empty pools, family members, multi-token prediction."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Literal

import pytest
import torch

from ernie45.checkpoint import load_model, save_model
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ExpertPoolConfig, ModelConfig
from ernie45.model.batch import PackedBatch, PoolRows, pack, pool_rows
from ernie45.model.cache import CacheStep, PagedKVCache
from ernie45.model.multimodal import ErnieModel


def rows(batch: PackedBatch, start: int, end: int) -> PackedBatch:
    """Tokens start ... end of a batch of one sequence without their pictures (features are given apart)."""
    is_vision = torch.zeros(len(batch), dtype=torch.bool)
    if batch.vision_rows.index_R is not None:
        is_vision[batch.vision_rows.index_R] = True
    text, vision = pool_rows(is_vision[start:end].numpy(), "cpu")
    features = batch.feature_rows_R
    inside = None if features is None else features[(features >= start) & (features < end)] - start
    return PackedBatch(
        token_ids_T=batch.token_ids_T[start:end],
        positions_TX=batch.positions_TX[start:end],
        cu_seqlens=(0, end - start),
        text_rows=text,
        vision_rows=vision,
        feature_rows_R=inside,
    )


@pytest.mark.parametrize("cuts", [[0, 31], [0, 4, 21, 31], [0, *range(20, 32)]])
@torch.no_grad()
def test_cache_in_chunks_equals_whole(twins, make_sequence: Callable, cuts: list[int]) -> None:
    model, config = twins.ours, twins.config
    batch = pack([make_sequence([5, (1, 6, 8), 12])])
    assert len(batch) == 31
    assert batch.vision is not None
    assert batch.feature_rows_R is not None
    expected, features = model(batch).hidden_TD, model.encode_vision(batch.vision)
    cache = PagedKVCache(config, num_pages=9, page_size=4)
    pages = torch.tensor([[3, 1, 8, 0, 5, 2, 7, 4]])
    slots = (pages[0][:, None] * 4 + torch.arange(4)).flatten()
    actual = []
    for start, end in itertools.pairwise(cuts):
        step = CacheStep(cache=cache, slots_T=slots[start:end], page_table_BN=pages, context_lens=(end,))
        part = rows(batch, start, end)
        chosen = features[(batch.feature_rows_R >= start) & (batch.feature_rows_R < end)]
        actual.append(model(part, cache=step, features_RD=chosen).hidden_TD)
    torch.testing.assert_close(torch.cat(actual), expected, rtol=0, atol=1e-5)


def test_every_pool_runs_with_zero_rows(twins, make_sequence: Callable) -> None:
    """A text-only step reaches the vision experts with gradients of 0, so ranks never differ in what they run."""
    model = twins.ours
    model.zero_grad()
    output = model(pack([make_sequence([9])]))
    assert [router.pool for router in output.routers[0]] == ["text", "vision"]
    assert output.routers[0][1].tokens_per_expert_E.sum() == 0
    output.hidden_TD.square().sum().backward()
    pool = model.layers[1].mlp.pools["vision"]
    for parameter in (pool.gate_up_weight, pool.down_weight, pool.router.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() == 0
    assert model.layers[1].mlp.pools["text"].gate_up_weight.grad.abs().max() > 0


def test_modality_is_isolated(twins, make_sequence: Callable) -> None:
    """Text experts have no say in visual rows of the first MoE layer, and the other way round."""
    model = twins.ours
    output = model(pack([make_sequence([5, (1, 4, 6), 7])]))
    text, vision = output.routers[0]
    assert len(text.experts_RA) == 12
    assert len(vision.experts_RA) == 6 + 2, "the two markers go with the picture"


def test_bf16_keeps_the_router_in_fp32(twins, make_sequence: Callable) -> None:
    model = ErnieModel(twins.config, dtype=torch.bfloat16)
    model.load_state_dict(twins.ours.state_dict())
    router = model.layers[1].mlp.pools["text"].router
    assert router.weight.dtype == router.correction_bias.dtype == torch.float32
    assert torch.equal(router.weight, twins.ours.layers[1].mlp.pools["text"].router.weight)
    again = ErnieModel(twins.config).to(torch.bfloat16)
    assert again.layers[1].mlp.pools["vision"].router.weight.dtype == torch.float32
    batch = pack([make_sequence([5, (1, 4, 6), 7])])
    with torch.no_grad():
        exact, rounded = (m.logits(m(batch).hidden_TD).float() for m in (twins.ours, model))
    assert rounded.isfinite().all()
    assert (exact - rounded).norm() / exact.norm() < 0.1


def test_meta_model_allocates_nothing_and_counts_28b() -> None:
    from ernie45.config.presets import preset

    model = ErnieModel(preset("28b-a3b"), dtype=torch.bfloat16, device="meta")
    buffers = sum(b.numel() for name, b in model.named_buffers() if "correction_bias" in name)
    assert sum(p.numel() for p in model.parameters()) + buffers == 29_399_294_336


def text_sequence(make_sequence: Callable) -> ModelInput:
    return make_sequence([17], seed=2)


@pytest.mark.parametrize("family", ["dense", "text experts"])
@torch.no_grad()
def test_text_members_against_transformers(make_sequence: Callable, tmp_path, twins, family: str) -> None:
    """0.3B-like and 21B-like shapes are the same code with other configs."""
    import transformers

    common = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "dense":
        theirs = transformers.Ernie4_5ForCausalLM(transformers.Ernie4_5Config(**common)).eval()
    else:
        experts = {"moe_intermediate_size": 48, "moe_k": 3, "moe_num_experts": 8, "moe_num_shared_experts": 2}
        theirs = transformers.Ernie4_5_MoeForCausalLM(transformers.Ernie4_5_MoeConfig(**common, **experts)).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in theirs.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    theirs.save_pretrained(tmp_path)
    ours, sequence = load_model(tmp_path), text_sequence(make_sequence)
    expected = theirs(torch.from_numpy(sequence.token_ids)[None]).logits[0]
    torch.testing.assert_close(ours.logits(ours(pack([sequence])).hidden_TD), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["pt", "paddle"])
def test_multi_token_prediction(make_sequence: Callable, tmp_path, layout: Literal["pt", "paddle"]) -> None:
    """The module sees the next token's embedding; its gradients reach every part of it; causality holds."""
    config = ModelConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mrope_section=(3, 3, 2),
        intermediate_size=48,
        expert_pools=(ExpertPoolConfig(modality="text", num_experts=4, ffn_size=16, num_active=2),),
        vocab_size=128,
        num_mtp_layers=1,
    )
    saved = ErnieModel(config)
    save_model(saved, tmp_path / "saved", layout)
    model = load_model(tmp_path / "saved")
    for name, parameter in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], parameter), name
    batch = pack([text_sequence(make_sequence)])
    output = model(batch)
    next_ids = torch.roll(batch.token_ids_T, -1)
    ahead = model.predict_ahead(0, next_ids, output.pre_norm_TD, batch)
    assert ahead.hidden_TD.shape == output.hidden_TD.shape
    model.logits(ahead.hidden_TD).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.mtp[0].parameters() if p.ndim > 1)
    changed = next_ids.clone()
    changed[10] = 5
    other = model.predict_ahead(0, changed, output.pre_norm_TD, batch)
    same = (other.hidden_TD == ahead.hidden_TD).all(-1)
    assert same[:10].all()
    assert not same[10:].any()


def test_rows_of_an_all_text_step_need_no_gather() -> None:
    text, vision = pool_rows(torch.zeros(4, dtype=torch.bool).numpy(), "cpu")
    assert text == PoolRows(None, 4)
    assert vision.count == 0
    assert vision.index_R is not None


def test_init_is_reproducible(twins) -> None:
    models = [ErnieModel(dataclasses.replace(twins.config), device="meta").to_empty(device="cpu") for _ in range(2)]
    for model in models:
        model.init_weights(torch.Generator().manual_seed(5))
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)
