"""`ernie45 info`: what a model consists of and what it needs, from its configuration alone.

Knows nothing about tensors; reads no weights.
"""

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ernie45.config.errors import ConfigError
from ernie45.config.model import ModelConfig
from ernie45.config.parameters import (
    count_active,
    count_parameters,
    count_text_only,
    kv_bytes_per_token,
    parameter_parts,
    weight_bytes,
)
from ernie45.config.presets import PRESETS, TINY_FOLDER, Preset

SUMMARY = "show the parts of a model and what it needs"
EXAMPLES = """\
examples:
  ernie45 info                 the whole family, a line each
  ernie45 info 28b-a3b         ERNIE-4.5-VL-28B-A3B in detail
  ernie45 info tiny            the model that comes with the package
  ernie45 info runs/my-model   a folder with config.json
"""

_PRECISIONS = {
    "fp32": "",
    "bf16": "routers stay fp32, here and below",
    "8": "WINT8: the matrices of the decoder",
    "4": "routed experts WINT4, the decoder's others WINT8",
    "2": "routed experts CCQ, the decoder's others WINT8",
}
WIDTH = 79
_GIB = 2**30
_MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help=f"a folder or one of {', '.join(PRESETS)}; left out: all of them in brief"
    )


def run(args: argparse.Namespace) -> None:
    lines = family() if args.model is None else describe(args.model)
    print("\n".join(lines))


def family() -> Iterator[str]:
    """All presets in brief."""
    yield f"{'model':<11}{'parameters':>13}{'active':>10}{'bf16':>11}{'2 bits':>10}{'KV/token':>11}"
    for name, preset in PRESETS.items():
        config = preset.config()
        mark = "*" if preset.unverified else ""
        yield (
            f"{name + mark:<11}{_billions(count_parameters(config)):>13}{_billions(count_active(config)):>10}"
            f"{_size(weight_bytes(config, 'bf16')):>11}{_size(weight_bytes(config, '2')):>10}"
            f"{_size(kv_bytes_per_token(config)):>11}"
        )
    yield ""
    yield "active: passed by one text token, the embedding included. KV cache in bf16."
    yield "* some figures are not verified: `ernie45 info NAME` says which"


def describe(model: str) -> Iterator[str]:
    """One preset, or one model folder, in detail."""
    if model in PRESETS and model != "tiny":
        preset, files = PRESETS[model], None
        config = preset.config()
    else:
        preset, config, files = _read_folder(model)
    yield preset.title + (" *" if preset.unverified else "")
    yield from _shape(config)
    yield ""
    yield from _parts(config)
    yield ""
    yield from _active(config)
    yield ""
    yield from _memory(config)
    if files:
        yield ""
        yield from files
    if preset.unverified:
        yield ""
        yield "* not verified:"
        for line in preset.unverified:
            yield textwrap.fill(line, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def _read_folder(model: str) -> tuple[Preset, ModelConfig, list[str]]:
    from ernie45.checkpoint.folder import read_config, read_config_json
    from ernie45.config.model_json import unread_keys

    folder = TINY_FOLDER if model == "tiny" else Path(model)
    if not folder.is_dir():
        raise ConfigError(f"model ({model!r}) must be a folder or one of {', '.join(PRESETS)}; check the path or the name")
    config = read_config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in weights)
    files = [f"files: {len(weights)} safetensors, {_size(size)}"] if weights else ["files: no safetensors here"]
    if unread := unread_keys(read_config_json(folder)):
        line = f"config.json, keys without effect here: {', '.join(unread)}"
        files += textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    preset = PRESETS["tiny"] if model == "tiny" else Preset(title=str(folder), config=lambda: config)
    return preset, config, files


def _shape(config: ModelConfig) -> Iterator[str]:
    yield (
        f"  {config.num_layers} layers, hidden {config.hidden_size}, {config.num_heads} query and {config.num_kv_heads} "
        f"key-value heads of {config.head_dim}"
    )
    tied = "tied" if config.tie_word_embeddings else "separate"
    yield f"  vocabulary {config.vocab_size:,} ({tied} head), context {config.max_position_embeddings:,}"
    for pool in config.expert_pools:
        yield f"  {pool.num_experts} {pool.modality} experts of width {pool.ffn_size:,}, {pool.num_active} active"
    if config.shared_ffn_size:
        yield f"  shared experts of width {config.shared_ffn_size:,} in all"
    if config.vision is not None:
        vision = config.vision
        yield f"  ViT: {vision.depth} layers, width {vision.hidden_size}, {vision.num_heads} heads, patch {vision.patch_size}"


def _parts(config: ModelConfig) -> Iterator[str]:
    yield f"{'part':<28}{'parameters':>18}{'active a token':>18}"
    for part in parameter_parts(config):
        if part.name in ("ViT", "resampler"):
            active = "once a picture"
        elif part.name == "multi-token prediction":
            active = "when drafting"
        else:
            active = f"{part.num_active:,}"
        yield f"{part.name:<28}{part.num_params:>18,}{active:>18}"
    yield f"{'total':<28}{count_parameters(config):>18,}"


def _active(config: ModelConfig) -> Iterator[str]:
    text = count_active(config)
    embedding = config.vocab_size * config.hidden_size
    yield f"active for a text token       {_billions(text):>10}  ({_billions(text - embedding)} without the embedding)"
    if config.vision is None:
        return
    vision = count_active(config, "vision")
    encoder = sum(part.num_params for part in parameter_parts(config) if part.name in ("ViT", "resampler"))
    yield f"active for a visual token     {_billions(vision):>10}  in the decoder"
    yield f"  with ViT and resampler      {_billions(vision + encoder):>10}  which run once a picture"
    yield f"text-only sub-model           {_billions(count_text_only(config)):>10}  what decoding alone needs"


def _memory(config: ModelConfig) -> Iterator[str]:
    yield "memory of the weights, scales included"
    for precision, note in _PRECISIONS.items():
        label = precision if precision[0] in "fb" else f"{precision} bits"
        size = _size(weight_bytes(config, precision))
        yield f"  {label:<8}{size:>11}  {note}".rstrip()
    yield "  Embedding, head, norms, ViT and resampler stay bf16 below fp32."
    token = kv_bytes_per_token(config)
    context = config.max_position_embeddings
    yield f"KV cache (bf16): {token:,} bytes a token, {_size(token * context)} for a full context"


def _billions(number: int) -> str:
    if number < 10**6:
        return f"{number / 1e3:.1f} k"
    return f"{number / 1e9:.3f} B" if number >= 10**9 else f"{number / 1e6:.2f} M"


def _size(num_bytes: int) -> str:
    if num_bytes >= _GIB:
        return f"{num_bytes / _GIB:.1f} GiB"
    return f"{num_bytes / _MIB:.1f} MiB" if num_bytes >= _MIB else f"{num_bytes / 1024:.1f} KiB"
