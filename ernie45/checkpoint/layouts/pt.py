"""Names of the `-PT` releases: torch's [out, in], separate q, k, v, gate, up and experts.

Knows nothing about the rest of a checkpoint. vLLM's and SGLang's loaders expect these names. Three irregularities:

- the routers of multimodal models are stored [in, experts], those of text models [experts, in];
- experts are numbered through: first all text experts, then all vision experts;
- the vision tower is at the top, without the prefix `model.`.

Sources: transformers 5.23 (conversion_mapping.py, ernie4_5_moe), the loaders of vLLM 0.33 (ernie45_vl.py, ernie45_moe.py,
ernie_mtp.py). `lm_head.weight` is there only if untied; old files repeat the embedding under that name (see `check`).
"""

from ernie45.checkpoint.layouts.table import Layout, Row, When


def _block(file: str, ours: str) -> tuple[Row, ...]:
    """Norms and attention of a decoder block."""
    return (
        Row(file=f"{file}.input_layernorm.weight", ours=f"{ours}.input_layernorm.weight"),
        Row(file=f"{file}.self_attn.q_proj.weight", ours=f"{ours}.self_attn.qkv_proj.weight", part="q"),
        Row(file=f"{file}.self_attn.k_proj.weight", ours=f"{ours}.self_attn.qkv_proj.weight", part="k"),
        Row(file=f"{file}.self_attn.v_proj.weight", ours=f"{ours}.self_attn.qkv_proj.weight", part="v"),
        Row(file=f"{file}.self_attn.o_proj.weight", ours=f"{ours}.self_attn.o_proj.weight"),
        Row(file=f"{file}.post_attention_layernorm.weight", ours=f"{ours}.post_attention_layernorm.weight"),
    )


def _mlp(file: str, ours: str, when: When) -> tuple[Row, ...]:
    return (
        Row(file=f"{file}.gate_proj.weight", ours=f"{ours}.gate_up_proj.weight", part="gate", when=when),
        Row(file=f"{file}.up_proj.weight", ours=f"{ours}.gate_up_proj.weight", part="up", when=when),
        Row(file=f"{file}.down_proj.weight", ours=f"{ours}.down_proj.weight", when=when),
    )


def _affine(file: str, ours: str) -> tuple[Row, ...]:
    return tuple(Row(file=f"{file}.{kind}", ours=f"{ours}.{kind}", when="multimodal") for kind in ("weight", "bias"))


_L, _O = "model.layers.{layer}", "layers.{layer}"
_E, _P = _L + ".mlp.experts.{expert}", _O + ".mlp.pools.{pool}"
_LAYERS = (
    *_block(_L, _O),
    *_mlp(f"{_L}.mlp", f"{_O}.mlp", "dense"),
    Row(file=f"{_L}.mlp.gate.weight", ours=f"{_O}.mlp.pools.text.router.weight", when="text"),
    Row(file=f"{_L}.mlp.gate.weight", ours=f"{_O}.mlp.pools.text.router.weight", transpose=True, when="multimodal"),
    Row(file=f"{_L}.mlp.gate.weight_1", ours=f"{_O}.mlp.pools.vision.router.weight", transpose=True, when="multimodal"),
    Row(
        file=f"{_L}.mlp.moe_statics.e_score_correction_bias",
        ours=f"{_P}.router.correction_bias",
        pool_row=True,
        when="moe",
    ),
    *_mlp(f"{_L}.mlp.shared_experts", f"{_O}.mlp.shared", "shared"),
    Row(file=f"{_E}.gate_proj.weight", ours=f"{_P}.gate_up_weight", part="gate", when="moe"),
    Row(file=f"{_E}.up_proj.weight", ours=f"{_P}.gate_up_weight", part="up", when="moe"),
    Row(file=f"{_E}.down_proj.weight", ours=f"{_P}.down_weight", when="moe"),
)

_B = "vision_model.blocks.{block}"
_TOWER_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_TOWER = (
    Row(file="vision_model.patch_embed.proj.weight", ours="vision_model.patch_embed.weight", when="multimodal"),
    *(row for name in _TOWER_BLOCK for row in _affine(f"{_B}.{name}", f"{_B}.{name}")),
    *_affine("vision_model.ln", "vision_model.ln"),
)

_R = "resampler_model"
_RESAMPLER = (
    *(
        row
        for stage in ("spatial_linear", "temporal_linear")
        for number, name in (("0", "fc1"), ("2", "fc2"), ("3", "ln"))
        for row in _affine(f"model.{_R}.{stage}.{number}", f"{_R}.{stage}.{name}")
    ),
    *_affine(f"model.{_R}.mlp", f"{_R}.mlp"),
    Row(file=f"model.{_R}.after_norm.weight", ours=f"{_R}.after_norm.weight", when="multimodal"),
)

_MTP = (
    Row(file="model.mtp_emb_norm.{mtp}.weight", ours="mtp.{mtp}.emb_norm.weight"),
    Row(file="model.mtp_hidden_norm.{mtp}.weight", ours="mtp.{mtp}.hidden_norm.weight"),
    # The 300B release has it [in, out] (SGLang pull request 7657).
    Row(file="model.mtp_linear_proj.{mtp}.weight", ours="mtp.{mtp}.linear_proj.weight", either_way=True),
    *_block("model.mtp_block.{mtp}", "mtp.{mtp}.block"),
    *_mlp("model.mtp_block.{mtp}.mlp", "mtp.{mtp}.block.mlp", "dense"),
)

LAYOUT = Layout(
    name="pt",
    rows=(
        Row(file="model.embed_tokens.weight", ours="embed_tokens.weight"),
        *_TOWER,
        *_RESAMPLER,
        *_LAYERS,
        Row(file="model.norm.weight", ours="norm.weight"),
        Row(file="lm_head.weight", ours="lm_head.weight", when="untied"),
        *_MTP,
    ),
)
