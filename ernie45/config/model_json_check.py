"""Which keys of a `config.json` are read, which must have one value, and which look like a mistake.

Knows nothing about what the keys mean, files, tensors or torch.

Released files hold many keys that other programs wrote and that change nothing here, so a key is no error merely because it
is not read: `unread_keys` lists those. An error is a key that somebody meant for this model and that would be dropped in
silence: misspelt, in the wrong place, under another program's name, or asking for arithmetic that this model does not have.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ernie45.config.errors import CheckpointError
from ernie45.config.model_json_keys import DENSE, FLAT_VL, MOE, NATIVE_VL

_Values = Mapping[str, tuple[Any, ...]]
_FIXED: _Values = {
    "hidden_act": ("silu",),
    "use_bias": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_rmsnorm": (True,),
    "use_qk_norm": (False,),
    "compression_ratio": (1, 1.0),
    "partial_rotary_factor": (1, 1.0),
    "mm_vocab_size": (0,),
    "moe_gate": ("topk", "top2_fused"),  # two names of one router
    "moe_gate_act": ("softmax",),
    "scoring_func": ("softmax",),
    "norm_topk_prob": (True,),
    "routed_scaling_factor": (1, 1.0),
    "moe_norm_gate_logits": (True,),
    "moe_use_aux_free": (True,),
    "moe_group_experts": (False,),
    "moe_use_token_type_bias": (False,),
    "moe_num_attn_experts": (False, 0),
}
# Text models are written with these too, where they have no effect.
_FIXED_VL: _Values = {
    **_FIXED,
    "rope_3d": (True,),
    "moe_use_hard_gate": (True,),
    "use_temporal_conv": (True,),
}
_FIXED_VISION: _Values = {"hidden_act": ("quick_gelu",)}
_FIXED_VISION_ROPE: _Values = {"rope_type": ("axial", "default"), "partial_rotary_factor": (1, 1.0)}
_FIXED_ROPE: _Values = {"partial_rotary_factor": (1, 1.0)}

_ROPES = frozenset({"rope_scaling", "rope_parameters"})
_TOKENS = frozenset(
    "bos_token_id eos_token_id pad_token_id sep_token_id im_patch_id image_token_id image_start_token_id image_end_token_id "
    "video_start_token_id video_end_token_id video_token_id".split()
)
_DECODER = _ROPES | frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
    "max_position_embeddings rms_norm_eps tie_word_embeddings num_nextn_predict_layers rope_theta freq_allocation".split()
)
_EXPERTS = frozenset("moe_num_experts moe_intermediate_size moe_k moe_num_shared_experts moe_norm_min".split())
_FLAT_LAYERS = frozenset("moe_layer_start_index moe_layer_end_index moe_layer_interval".split())
_FLAT_VISION = frozenset("spatial_conv_size temporal_conv_size pixel_hidden_size vision_config".split())
_VISION = frozenset(
    "depth hidden_size embed_dim num_heads intermediate_size mlp_ratio in_channels in_chans patch_size spatial_merge_size "
    "temporal_merge_size rms_norm_eps rope_parameters".split()
)
_FLAT = {FLAT_VL: _EXPERTS | _FLAT_LAYERS | _FLAT_VISION, MOE: _EXPERTS | _FLAT_LAYERS, DENSE: frozenset[str]()}
_KIND = frozenset({"model_type", "architectures"})
_ROPE = frozenset({"rope_theta", "rope_type", "type", "mrope_section"})

# What other programs and other models call a key.
_ALIASES = {
    "num_experts": "moe_num_experts",
    "num_local_experts": "moe_num_experts",
    "n_routed_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_k",
    "moe_topk": "moe_k",
    "n_shared_experts": "moe_num_shared_experts",
    "num_layers": "num_hidden_layers",
    "n_layer": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_head": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "num_mtp_layers": "num_nextn_predict_layers",
    "activation_function": "hidden_act",
}
_VISION_ALIASES = {"num_hidden_layers": "depth", "num_attention_heads": "num_heads", "rope_theta": "rope_parameters"}

# Keys of other programs that are spelt like one of ours.
_NAMESAKES = frozenset({"cls_token_id", "unk_token_id", "fuse_rms_norm"})


class _Section(NamedTuple):
    """One JSON object of the file: its path, what it holds and how that is judged."""

    path: str
    data: Mapping[str, Any]
    read: frozenset[str]
    fixed: _Values
    aliases: Mapping[str, str]


def check_keys(data: Mapping[str, Any], model_type: str) -> None:
    """CheckpointError for the first key that would be dropped in silence though somebody meant it."""
    sections = list(_sections(data, model_type))
    for section in sections:
        for key, value in section.data.items():
            if key in section.fixed and value is not None and value not in section.fixed[key]:
                raise CheckpointError(
                    f"{section.path}{key} ({_brief(value)}) in config.json must be {section.fixed[key][0]!r}: this model is "
                    "computed no other way; use a released ERNIE 4.5 model"
                )
            if value is not None and not _known(key, section):
                _check_unread(key, value, section, sections)


def unread_keys(data: Mapping[str, Any], model_type: str) -> list[str]:
    """Keys that have no effect here, sorted; those of an inner object as `vision_config.attn_sep`."""
    found = [section.path + key for section in _sections(data, model_type) for key in section.data if not _known(key, section)]
    return sorted(found)


def _sections(data: Mapping[str, Any], model_type: str) -> Iterator[_Section]:
    if model_type == NATIVE_VL:
        top = _KIND | _TOKENS | {"tie_word_embeddings", "text_config", "vision_config"}
        text = _DECODER | _EXPERTS | _TOKENS | {"mlp_layer_types", "model_type"}
        yield _Section("", data, top, {}, _ALIASES)
        yield from _with_rope("text_config.", _inner(data, "text_config"), text, _FIXED_VL)
    else:
        read = {FLAT_VL: _EXPERTS | _FLAT_LAYERS | _FLAT_VISION, MOE: _EXPERTS | _FLAT_LAYERS, DENSE: frozenset[str]()}[
            model_type
        ]
        yield from _with_rope("", data, _KIND | _DECODER | _TOKENS | read, _FIXED_VL if model_type == FLAT_VL else _FIXED)
    if model_type in (NATIVE_VL, FLAT_VL):
        vision = _inner(data, "vision_config")
        yield _Section("vision_config.", vision, _VISION | {"model_type"}, _FIXED_VISION, _VISION_ALIASES)
        yield _Section("vision_config.rope_parameters.", _inner(vision, "rope_parameters"), _ROPE, _FIXED_VISION_ROPE, {})


def _with_rope(path: str, data: Mapping[str, Any], read: frozenset[str], fixed: _Values) -> Iterator[_Section]:
    yield _Section(path, data, read, fixed, _ALIASES)
    for key in sorted(_ROPES):
        yield _Section(f"{path}{key}.", _inner(data, key), _ROPE, _FIXED_ROPE, {})


def _inner(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{key} ({_brief(value)}) in config.json must be an object; take the file of the release")
    return value


def _known(key: str, section: _Section) -> bool:
    return key in section.read or key in section.fixed


def _check_unread(key: str, value: Any, section: _Section, sections: list[_Section]) -> None:
    if (alias := section.aliases.get(key)) and section.data.get(alias) != value:
        raise _mistake(section, key, f"is called {section.path}{alias} in ERNIE 4.5 files; rename it, or remove it")
    if alias or not value:  # said twice, or switched off
        return
    homes = [other for other in sections if key in other.read]
    if homes:
        if not any(home.data.get(key) == value for home in homes):
            raise _mistake(section, key, f"is in the wrong place: {homes[0].path}{key} is read; move it there, or remove it")
        return
    if key in _ELSEWHERE:
        raise _mistake(section, key, "is read in other kinds of ERNIE 4.5 files only, so it has no effect here; remove it")
    if key.startswith("_") or key in _NAMESAKES:
        return
    for other in (section, *sections):
        if probable := _probable(key, sorted(other.read | set(other.fixed))):
            raise _mistake(section, key, f"is not known: probably {other.path}{probable} is meant; rename it, or remove it")


# Keys that some kind of file has; where a file's kind does not have them, they would be dropped.
_ELSEWHERE = _EXPERTS | _FLAT_LAYERS | _FLAT_VISION | (_VISION - _DECODER) | {"mlp_layer_types", "text_config"}


def _mistake(section: _Section, key: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{section.path}{key} ({_brief(section.data[key])}) in config.json {problem}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _probable(key: str, names: list[str]) -> str | None:
    """The name that `key` is most likely a misspelling of."""
    squeezed = _squeeze(key)
    for name in names:
        other = _squeeze(name)
        slips = 2 if len(other) > 9 else 1
        if len(other) >= 5 and abs(len(squeezed) - len(other)) <= slips and _distance(squeezed, other) <= slips:
            return name
    close = difflib.get_close_matches(squeezed, [_squeeze(name) for name in names], n=1, cutoff=0.92)
    return next((name for name in names if _squeeze(name) in close), None)


def _squeeze(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _distance(a: str, b: str) -> int:
    """Edits from a to b: insertions, deletions, replacements and swaps of neighbours (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        older, before, row = before, row, [i]
        for j, right in enumerate(b, start=1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                best = min(best, older[j - 2] + 1)
            row.append(best)
    return row[-1]
