"""Names that transformers' own `ernie4_5_vl_moe` writes with `save_pretrained` and reads with `from_pretrained`.

Knows nothing about the rest of a checkpoint. Its modules have other names in memory; it converts while saving, and gives the
names of `-PT` back with one difference: the vision tower keeps the prefix `model.`. Text models have no difference.
"""

from dataclasses import replace

from ernie45.checkpoint.layouts import pt
from ernie45.checkpoint.layouts.table import Layout

LAYOUT = Layout(
    name="native",
    rows=tuple(
        replace(row, file=f"model.{row.file}") if row.file.startswith("vision_model.") else row for row in pt.LAYOUT.rows
    ),
)
