"""Adapters trained and saved by PEFT on transformers' own classes: our logits against theirs, in fp32."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from bench.peers import transformers_inputs
from ernie45.checkpoint import load_model
from ernie45.checkpoint.adapter import load_adapter
from ernie45.config.errors import CheckpointError
from ernie45.config.inputs import ModelInput
from ernie45.model.batch import pack
from ernie45.model.lora import AdapterRows, LoraAdapter
from ernie45.model.multimodal import ErnieModel
from ernie45.ops import decode

# PEFT asks transformers by a name that transformers means to drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match"),  # of parameters they do
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),  # it says so when lm_head is adapted
]
LOGIT_TOLERANCE = 1e-5
DECODER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
PARTS = [5, (1, 4, 6), 7]


def adapted(theirs: Any, folder: Path, **changes: Any) -> Any:
    """transformers' model with a PEFT adapter whose numbers say something, saved to the folder."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": DECODER} | changes
    model = get_peft_model(copy.deepcopy(theirs), LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(len(settings))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.normal_(0, 0.1, generator=generator)
    model.save_pretrained(str(folder))
    return model


@torch.no_grad()
def our_logits(model: ErnieModel, adapter: LoraAdapter | None, *inputs: ModelInput) -> torch.Tensor:
    rows = () if adapter is None else (AdapterRows(adapter, None),)
    batch = replace(pack(inputs), adapters=rows)
    return model.logits(model(batch).hidden_TD, rows)


@torch.no_grad()
def their_logits(model: Any, config: Any, *inputs: ModelInput) -> torch.Tensor:
    return model(**transformers_inputs(config, inputs)).logits.flatten(0, 1)


VARIANTS: dict[str, dict[str, Any]] = {
    "all of the decoder": {},
    "two of the three in qkv": {"target_modules": ["q_proj", "v_proj"]},
    "one half of gate and up": {"target_modules": ["up_proj"]},
    "head": {"target_modules": ["o_proj", "lm_head"]},
    "rslora": {"use_rslora": True},
    "ranks and alphas by pattern": {
        "rank_pattern": {"k_proj": 2, r".*\.layers\.2\.mlp.*down_proj": 7},
        "alpha_pattern": {"k_proj": 9, r"layers\.1\.self_attn\.o_proj": 1},
    },
    "experts of both pools": {"target_modules": [], "target_parameters": EXPERTS, "r": 3},
    "one stack of one pool": {
        "target_modules": ["o_proj"],
        "target_parameters": ["vision_moe.experts.down_proj"],
        "alpha_pattern": {"vision_moe.experts.down_proj": 11},
    },
    "tower and resampler": {"target_modules": r".*\.vision_tower\..*\.(qkv|proj|fc[12])|.*\.resampler_model\.(.*fc[12]|mlp)"},
    "everything": {"target_modules": "all-linear", "target_parameters": EXPERTS},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_peft(make_twins: Callable, make_sequence: Callable, tmp_path: Path, name: str) -> None:
    twins = make_twins(tie_word_embeddings=False)
    theirs = adapted(twins.theirs, tmp_path, **VARIANTS[name])
    adapter = load_adapter(tmp_path, twins.ours)
    sequence = make_sequence(PARTS, seed=3)
    assert len(sequence) < decode.MAX_ROWS
    for inputs in ([sequence], [sequence, make_sequence([3, (1, 4, 6), 9], seed=4), make_sequence(PARTS, seed=5)]):
        expected = torch.cat([their_logits(theirs, twins.config, one) for one in inputs])
        torch.testing.assert_close(our_logits(twins.ours, adapter, *inputs), expected, rtol=0, atol=LOGIT_TOLERANCE)
    plain = our_logits(twins.ours, None, sequence)
    assert (plain - our_logits(twins.ours, adapter, sequence)).abs().max() > 1e-2, "the adapter must say something"


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # the very case of this test
def test_head_that_shares_its_weight_with_the_embedding(twins, make_sequence: Callable, tmp_path: Path) -> None:
    theirs = adapted(twins.theirs, tmp_path, target_modules=["lm_head"])
    adapter = load_adapter(tmp_path, twins.ours)
    sequence = make_sequence(PARTS, seed=3)
    expected = their_logits(theirs, twins.config, sequence)
    torch.testing.assert_close(our_logits(twins.ours, adapter, sequence), expected, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_text_models(family: str, tmp_path: Path) -> None:
    import transformers as t

    sizes: dict[str, Any] = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    if family == "dense":
        theirs = t.Ernie4_5ForCausalLM(t.Ernie4_5Config(**sizes)).eval()
        modules, parameters = DECODER, None
    else:
        experts: dict[str, Any] = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16}
        theirs = t.Ernie4_5_MoeForCausalLM(t.Ernie4_5_MoeConfig(**sizes, **experts)).eval()
        # PEFT would turn modules of these names into parameters of the experts.
        modules = DECODER[:4]
        parameters = [*EXPERTS, *(f"{name}.weight" for name in DECODER[4:])]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path / "model")
    ours = load_model(tmp_path / "model")
    peft_model = adapted(theirs, tmp_path / "adapter", target_modules=modules, target_parameters=parameters)
    adapter = load_adapter(tmp_path / "adapter", ours)
    ids = torch.randint(3, 128, (40,))
    inputs = ModelInput(
        token_ids=ids.numpy(),
        is_vision=np.zeros(len(ids), bool),
        positions=np.repeat(np.arange(len(ids))[:, None], 3, axis=1),
        patches=np.zeros((0, 12), np.uint8),
        next_position=len(ids),
    )
    with torch.no_grad():
        expected = peft_model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(our_logits(ours, adapter, inputs), expected, rtol=1e-5, atol=LOGIT_TOLERANCE)


def test_rows_of_two_adapters_and_of_none_in_one_batch(make_twins: Callable, make_sequence: Callable, tmp_path: Path) -> None:
    twins = make_twins(tie_word_embeddings=False)
    adapted(twins.theirs, tmp_path / "a")
    adapted(twins.theirs, tmp_path / "b", r=3, target_modules=["q_proj", "down_proj", "lm_head"])
    a, b = (load_adapter(tmp_path / name, twins.ours) for name in "ab")
    assert a.content_hash != b.content_hash
    assert a.content_hash == load_adapter(tmp_path / "a", twins.ours).content_hash
    inputs = [make_sequence([length, (1, 4, 6), 3], seed=length) for length in (2, 3, 4)]
    alone = torch.cat([our_logits(twins.ours, one, item) for one, item in zip((None, a, b), inputs, strict=True)])
    batch = pack(inputs)
    _, first, second, end = batch.cu_seqlens
    rows = (AdapterRows(a, torch.arange(first, second)), AdapterRows(b, torch.arange(second, end)))
    with torch.no_grad():
        together = twins.ours.logits(twins.ours(replace(batch, adapters=rows)).hidden_TD, rows)
    torch.testing.assert_close(together, alone, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora (True)"),
        ({"bias": "all"}, "bias ('all')"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save (['lm_head'])"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices ([3])"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights ('pissa')"),
        ({"lora_bias": True}, "lora_bias (True)"),
        ({"peft_type": "IA3"}, "peft_type ('IA3')"),
        ({"something_new": {"a": 1}}, "something_new ({'a': 1})"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
    ],
)
def test_what_is_not_served_is_named(twins, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    adapted(twins.theirs, tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError) as caught:
        load_adapter(tmp_path, twins.ours)
    assert words in str(caught.value)
    assert any(way in str(caught.value) for way in ("merge_and_unload", "save the adapter again", "save it with"))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


Q = "base_model.model.model.language_model.layers.1.self_attn.q_proj"
ROUTER = "base_model.model.model.language_model.layers.1.mlp.text_moe.gate"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({f"{ROUTER}.lora_A.weight": torch.zeros(4, 64), f"{ROUTER}.lora_B.weight": torch.zeros(8, 4)}),
         "text_moe.gate"),
        (lambda t: t.update({Q.replace("q_proj", "q_norm") + ".weight": torch.zeros(4)}), "q_norm"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.zeros(64)}), "lora_magnitude_vector"),
        (lambda t: t.pop(f"{Q}.lora_A.weight"), "lacks lora_A"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 60)}), "lora_A (4, 60)"),
        (lambda t: t.update({"base_model.model.lm_head.base_layer.weight": torch.zeros(128, 64)}), "differs from the model"),
        (dict.clear, "no lora_A and lora_B"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_the_model(twins, tmp_path: Path, change: Callable, words: str) -> None:
    adapted(twins.theirs, tmp_path, target_modules=["q_proj"])
    edit(tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        load_adapter(tmp_path, twins.ours)
    assert words in str(caught.value)


def test_folders_without_an_adapter(twins, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no readable adapter_config.json"):
        load_adapter(tmp_path / "none", twins.ours)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match="safe_serialization"):
        load_adapter(tmp_path, twins.ours)
    (tmp_path / "adapter_config.json").write_text("[1")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_adapter(tmp_path, twins.ours)
