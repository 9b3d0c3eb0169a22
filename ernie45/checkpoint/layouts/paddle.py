"""Names of the `-Paddle` releases: prefix `ernie.`, matrices [in, out], fused q|k|v and gate|up (called up_gate).

Knows nothing about the rest of a checkpoint. Made from the `-PT` table by three rules: pieces of one of our parameters become
one tensor; every matrix but the embedding is transposed (routers are [in, experts] in all models); the prefix `model.` becomes
`ernie.`. Some files have the resampler without a prefix. Source: PaddlePaddle/ERNIE (ernie/modeling_moe_vl.py, its conversion
tables), whose `up_gate_proj` holds the gate half first.
"""

from dataclasses import replace

from ernie45.checkpoint.layouts import pt
from ernie45.checkpoint.layouts.table import Layout, Row

_FUSED = {"self_attn.q_proj": "self_attn.qkv_proj", "gate_proj": "up_gate_proj"}
_MERGED = ("self_attn.k_proj", "self_attn.v_proj", "up_proj")
# Vectors and the embedding stay as they are.
_KEPT = ("norm", ".bias", "_bias", "embed_tokens", ".ln.", "linear.3.")


def _row(row: Row) -> Row | None:
    """The Paddle row for a `-PT` row; None if another row's tensor holds it."""
    file = "ernie." + row.file.removeprefix("model.") if row.file.startswith("model.") else row.file
    if any(name in file for name in _MERGED):
        return None
    for piece, fused in _FUSED.items():
        file = file.replace(piece, fused)
    is_matrix = not any(kept in file for kept in _KEPT)
    return replace(row, file=file, part="all", transpose=is_matrix, either_way=False)


LAYOUT = Layout(
    name="paddle",
    rows=tuple(row for row in map(_row, pt.LAYOUT.rows) if row is not None),
    aliases=(("resampler_model.", "ernie.resampler_model."),),
    file_format="np",
)
