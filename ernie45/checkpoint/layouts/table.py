"""What a layout is: a table of rows (their name, our name, which part, transposed or not), and its expansion for a model.

Knows nothing about files or torch. A row is a template: `{layer}`, `{expert}`, `{pool}`, `{block}` and `{mtp}` run over what
the model has. `expand` gives slots: each says that all of one file tensor (or one row of it) is certain rows of one of our
parameters (or of one expert in it). Loading, writing and converting are all made of slots, and so will loading a shard be:
a slot's `rows` and `expert` can be intersected with the part a rank holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from ernie45.checkpoint.inventory import Inventory, Parameter, Shape
from ernie45.config.model import ModelConfig

Part = Literal["all", "q", "k", "v", "gate", "up"]
When = Literal["always", "dense", "moe", "shared", "text", "multimodal", "untied"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a layout's table.

    part: rows of our fused parameter that the file's tensor is. transpose: the file has [in, out] where we have [out, in].
    pool_row: the file's tensor has one row per pool, in the order text, vision, and this row is ours.
    when: the models or layers that have it ("text": a model without a vision tower). either_way: files exist with and
    without the transposition; the shape tells (square ones do not occur).
    """

    file: str
    ours: str
    part: Part = "all"
    transpose: bool = False
    pool_row: bool = False
    when: When = "always"
    either_way: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A table and its name. `aliases`: (prefix, prefix it is read as); `file_format`: what safetensors' metadata say."""

    name: str
    rows: tuple[Row, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    file_format: str = "pt"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """`tensor[file_row]` of a file, transposed if `transpose`, is rows `start:stop` of `parameter[expert]`.

    shape: of the file's whole tensor. file_row, expert: None stands for the whole. A row of a 1-D parameter is one number.
    """

    tensor: str
    shape: Shape
    file_row: int | None
    parameter: str
    expert: int | None
    start: int
    stop: int
    transpose: bool
    either_way: bool = False


def expand(layout: Layout, config: ModelConfig, parameters: Inventory) -> tuple[Slot, ...]:
    """All slots of a model, layer by layer; the slots of one file tensor stand together."""
    slots = []
    for loop, group in groupby(layout.rows, key=_loop):
        rows = list(group)
        for index in _indices(loop, config):
            for row, names in _instances(rows, loop, index, config):
                slots.append(_slot(row, names, config, parameters))
    return tuple(slots)


_Names = dict[str, int | str]


def _loop(row: Row) -> str | None:
    return next((name for name in ("layer", "block", "mtp") if f"{{{name}}}" in row.file), None)


def _indices(loop: str | None, config: ModelConfig) -> range:
    if loop is None:
        return range(1)
    if loop == "block":
        return range(config.vision.depth if config.vision else 0)
    return range(config.num_layers if loop == "layer" else config.num_mtp_layers)


def _instances(rows: list[Row], loop: str | None, index: int, config: ModelConfig) -> Iterator[tuple[Row, _Names]]:
    """The rows that the model has for this layer, block or module; all rows of one expert before the next expert."""
    base: _Names = {} if loop is None else {loop: index}
    for per_expert, group in groupby(rows, key=lambda row: "{expert}" in row.file):
        group = [row for row in group if _applies(row, config, index if loop == "layer" else None)]
        if not per_expert:
            pools = [pool.modality for pool in config.expert_pools]
            yield from ((row, base | {"pool": pool}) for row in group for pool in (pools if "{pool}" in row.ours else [""]))
            continue
        number = 0
        for pool in config.expert_pools if group else ():
            for expert in range(pool.num_experts):
                yield from ((row, base | {"pool": pool.modality, "expert": number, "own": expert}) for row in group)
                number += 1


def _applies(row: Row, config: ModelConfig, layer: int | None) -> bool:
    moe = layer is not None and config.is_moe_layer(layer)
    return {
        "always": True,
        "dense": not moe,
        "moe": moe,
        "shared": moe and config.shared_ffn_size > 0,
        "text": moe and config.vision is None,
        "multimodal": (layer is None or moe) and config.vision is not None,
        "untied": not config.tie_word_embeddings,
    }[row.when]


def _slot(row: Row, names: _Names, config: ModelConfig, parameters: Inventory) -> Slot:
    parameter = row.ours.format(**names)
    ours = parameters[parameter]
    start, stop = _rows_of_part(row.part, ours, config)
    shape = (stop - start, *ours.matrix[1:])
    shape = shape[::-1] if row.transpose else shape
    pools: list[int | str] = [pool.modality for pool in config.expert_pools]
    return Slot(
        tensor=row.file.format(**names),
        shape=(len(pools), *shape) if row.pool_row else shape,
        file_row=pools.index(names["pool"]) if row.pool_row else None,
        parameter=parameter,
        expert=int(names["own"]) if ours.stacked else None,
        start=start,
        stop=stop,
        transpose=row.transpose,
        either_way=row.either_way,
    )


def _rows_of_part(part: Part, ours: Parameter, config: ModelConfig) -> tuple[int, int]:
    total = ours.matrix[0]
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    bounds = {
        "all": (0, total),
        "q": (0, query),
        "k": (query, query + key),
        "v": (query + key, query + 2 * key),
        "gate": (0, total // 2),
        "up": (total // 2, total),
    }
    return bounds[part]
