"""transformers' causal language model, as Baidu's snippets use it, over this package's model and engine.

Knows nothing about text or how pictures are processed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutput

from ernie45.checkpoint import load_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, RequestError
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.config.model import ModelConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.model.batch import pack
from ernie45.model.multimodal import ErnieModel
from ernie45.processor.image import Patches, content_hash
from ernie45.processor.positions import MediaSpan, num_media_tokens, rope_positions

_GENERATION = frozenset(
    "max_new_tokens max_length min_new_tokens do_sample temperature top_p top_k min_p repetition_penalty bad_words_ids "
    "eos_token_id pad_token_id bos_token_id num_return_sequences".split()
)
_PLAIN = {"use_cache": True, "num_beams": 1, "return_dict_in_generate": False}  # the only values that are served


class ErnieForCausalLM(nn.Module):
    """One model. `generate` runs it in an engine, so rows of different lengths are batched without padding."""

    def __init__(self, model: ErnieModel, generation_config: GenerationConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.generation_config = generation_config or GenerationConfig()
        self._engine: LLM | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device_map: Any = None,
        torch_dtype: Any = None,
        dtype: Any = None,
        trust_remote_code: bool | None = None,
        low_cpu_mem_usage: bool = True,
    ) -> "ErnieForCausalLM":
        """Of a model folder in any layout. trust_remote_code and low_cpu_mem_usage hold whatever they say: no remote code is
        run, and weights are read one at a time. CheckpointError, ConfigError if it cannot be read so."""
        wanted = dtype if dtype is not None else torch_dtype
        model = load_model(folder, dtype=None if wanted in (None, "auto") else wanted, device=_device(device_map))
        file = Path(folder) / "generation_config.json"
        return cls(model.eval(), GenerationConfig.from_pretrained(str(folder)) if file.is_file() else None)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def config(self) -> ModelConfig:
        """This package's own description of the model."""
        return self.model.config

    def add_image_preprocess(self, processor: Any) -> None:
        """The model normalises uint8 patches by itself; this checks that the processor's are those it was trained with."""
        config, vision = processor.processor.config, self.config.vision
        if vision is None:
            raise RequestError("processor is for pictures, but this model reads text only; leave add_image_preprocess out")
        if (config.patch_size, config.merge_size) != (vision.patch_size, vision.spatial_merge_size):
            raise ConfigError(
                f"processor cuts patches of {config.patch_size} merged by {config.merge_size}, the model takes "
                f"{vision.patch_size} and {vision.spatial_merge_size}; use the processor of the same folder"
            )

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **features: Any) -> CausalLMOutput:
        """Logits [B, S, V] of whole rows, 0 where attention_mask is 0. With labels (-100: none), also their mean loss."""
        inputs = self._inputs(input_ids, features)
        packed = pack(inputs, self.device)
        logits_TV = self.model.logits(self.model(packed).hidden_TD)
        mask_BS = _mask(input_ids, features).to(self.device)
        logits_BSV = logits_TV.new_zeros(*input_ids.shape, logits_TV.shape[-1])
        logits_BSV[mask_BS] = logits_TV
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BSV[:, :-1].float().flatten(0, 1), labels[:, 1:].to(self.device).flatten())
        return CausalLMOutput(loss=loss, logits=logits_BSV)  # type: ignore[arg-type]

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Tensor:
        """Rows [B, L]: each prompt as given, what follows it with the token that ends it, and padding behind.

        inputs or input_ids (the same, if both are given), attention_mask, token_type_ids, position_ids, images and grid_thw
        as the processor makes them. Else fields of `GenerationConfig` that an engine of this package serves; without
        max_new_tokens until the context is full. RequestError for others. Sampling follows `torch.manual_seed`.
        """
        ids = kwargs.pop("input_ids", None)
        if inputs is not None and ids is not None and not torch.equal(inputs, ids):
            raise RequestError("inputs and input_ids are both given and differ; give one of them")
        input_ids = inputs if inputs is not None else ids
        if input_ids is None:
            raise RequestError("input_ids is missing; give what the processor made")
        features = {name: kwargs.pop(name) for name in _FEATURES if name in kwargs}
        rows = self._inputs(input_ids, features)
        options = self._options(generation_config, kwargs)
        copies = int(options.get("num_return_sequences") or 1)
        repeated = [row for row in rows for _ in range(copies)]
        params = [self._params(options, input_ids.shape[1]) for _ in repeated]
        completions = self._engine_for(repeated, params).generate(repeated, params)
        answers = [[*done.token_ids, *([done.stop_token_id] if done.stop_token_id is not None else [])] for done in completions]
        width = max(map(len, answers))
        pad = options.get("pad_token_id")
        result = torch.full((len(answers), input_ids.shape[1] + width), self.config.tokens.pad if pad is None else pad)
        for index, answer in enumerate(answers):
            result[index, : input_ids.shape[1]] = input_ids[index // copies]
            result[index, input_ids.shape[1] : input_ids.shape[1] + len(answer)] = torch.tensor(answer, dtype=torch.int64)
        return result.to(input_ids.device)

    def _options(self, given: GenerationConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        for name, value in kwargs.items():
            if name in _PLAIN and value not in (None, _PLAIN[name]):
                raise RequestError(f"{name} ({value!r}) must be {_PLAIN[name]!r}; other values are not served")
            if name not in _PLAIN and name not in _GENERATION:
                raise RequestError(f"{name} is not served by generate; served are {', '.join(sorted(_GENERATION))}")
        config = self.generation_config if given is None else given
        options = {name: getattr(config, name, None) for name in _GENERATION}
        return options | {name: value for name, value in kwargs.items() if name in _GENERATION and value is not None}

    def _params(self, options: dict[str, Any], num_prompt_tokens: int) -> SamplingParams:
        """Values of transformers in ours; None asks for nothing."""
        given = {name: value for name, value in options.items() if value is not None}
        max_tokens = given.get("max_new_tokens")
        if max_tokens is None and "max_length" in given:
            max_tokens = given["max_length"] - num_prompt_tokens
        eos = given.get("eos_token_id", (self.config.tokens.eos, self.config.tokens.end_of_turn))
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=given.get("min_new_tokens", 0),
            temperature=float(given.get("temperature", 1.0)) if given.get("do_sample") else 0.0,
            top_p=float(given.get("top_p", 1.0)),
            top_k=given.get("top_k", 0) if given.get("do_sample") else 0,
            min_p=float(given.get("min_p", 0.0)),
            repetition_penalty=float(given.get("repetition_penalty", 1.0)),
            bad_words=tuple(map(tuple, given.get("bad_words_ids", ()))),
            seed=int(torch.randint(2**62, ())) if given.get("do_sample") else None,
            stop_token_ids=(eos,) if isinstance(eos, int) else tuple(eos),
        )

    def _engine_for(self, rows: Sequence[ModelInput], params: Sequence[SamplingParams]) -> LLM:
        """The engine of the last call, if it is large enough and the model has not moved since."""
        config = EngineConfig(max_num_seqs=max(len(rows), 1))
        ends = [
            self.config.max_position_embeddings if each.max_tokens is None else len(row) + each.max_tokens
            for row, each in zip(rows, params, strict=True)
        ]
        num_pages = sum(-(-min(end, self.config.max_position_embeddings) // config.page_size) for end in ends)
        engine = self._engine
        kept = engine is not None and engine.model.device == self.device and engine.config.device == str(self.device)
        if engine is None or not kept or engine.stats().num_pages < num_pages or engine.config.max_num_seqs < len(rows):
            self._engine = None  # its pages go before the new ones come
            engine = self._engine = LLM(self.model, EngineConfig(max_num_seqs=config.max_num_seqs, num_pages=num_pages))
        return engine

    def _inputs(self, input_ids: Tensor, features: dict[str, Any]) -> list[ModelInput]:
        """The rows without padding, each with its own pictures. RequestError where the features contradict each other."""
        if input_ids.ndim != 2:
            raise RequestError(f"input_ids has the shape {list(input_ids.shape)}, must be [rows, tokens]; add a dimension")
        unknown = sorted(set(features) - set(_FEATURES))
        if unknown:
            raise RequestError(f"{unknown[0]} is not one of {', '.join(_FEATURES)}; leave it out")
        grids, patches = features.get("grid_thw"), features.get("images")
        if (grids is None) != (patches is None):
            raise RequestError("images and grid_thw belong together; give both or neither")
        pictures = _Pictures(patches, grids)
        mask_BS = _mask(input_ids, features).cpu().numpy()
        rows = [self._row(ids[mask], pictures) for ids, mask in zip(input_ids.cpu().numpy(), mask_BS, strict=True)]
        if pictures.num_left:
            raise RequestError(f"grid_thw has {pictures.num_left} pictures more than input_ids has places for")
        for name, attribute in (("position_ids", "positions"), ("token_type_ids", "is_vision")):
            if features.get(name) is not None:
                found = features[name].cpu().numpy()[mask_BS]
                if not np.array_equal(found, np.concatenate([getattr(row, attribute) for row in rows])):
                    raise RequestError(f"{name} differs from what input_ids says; leave it out, or take the processor's")
        return rows

    def _row(self, ids: np.ndarray, pictures: "_Pictures") -> ModelInput:
        tokens, vision = self.config.tokens, self.config.vision
        merge = vision.spatial_merge_size if vision is not None else 1
        items, parts, index = [], [], 0
        places = np.flatnonzero(np.isin(ids, (tokens.image_start, tokens.video_start)))
        for start in places if vision is not None else ():
            found = next(pictures, None)
            length = num_media_tokens(found.grid, merge) if found is not None else 0
            span = ids[start + 1 : start + 1 + length]
            if found is None or len(span) < length or not (span == tokens.image_patch).all():
                raise RequestError(f"input_ids has a picture at token {start} that grid_thw does not fit; give all pictures")
            kind = "image" if ids[start] == tokens.image_start else "video"
            digest = content_hash(found)
            items.append(MediaItem(kind=kind, grid=found.grid, offset=int(start) + 1, length=length, content_hash=digest))
            parts.append(found.patches_PC)
            index += length
        if index != np.count_nonzero(ids == tokens.image_patch):
            raise RequestError("input_ids has placeholders outside the pictures of grid_thw; give all pictures")
        positions = rope_positions(len(ids), [MediaSpan(item.offset, item.grid) for item in items], merge)
        width = 3 * vision.patch_size**2 if vision is not None else 0
        return ModelInput(
            token_ids=ids.astype(np.int64),
            is_vision=np.isin(ids, tokens.vision_ids) if vision is not None else np.zeros(len(ids), bool),
            positions=positions.positions_SX,
            patches=np.concatenate(parts) if parts else np.empty((0, width), np.uint8),
            media=tuple(items),
            next_position=positions.next_position,
        )


_FEATURES = ("attention_mask", "token_type_ids", "position_ids", "images", "grid_thw")


class _Pictures(Iterator[Patches]):
    """The pictures of all rows, one after the other."""

    def __init__(self, patches: Any, grids: Any) -> None:
        self._patches_PC = np.empty((0, 0), np.uint8) if patches is None else patches.cpu().numpy()
        self._grids = [] if grids is None else [tuple(map(int, grid)) for grid in grids.tolist()]
        self._index = self._row = 0
        if self._patches_PC.dtype != np.uint8:
            raise RequestError(f"images has the type {self._patches_PC.dtype}, must be uint8, as the processor makes it")
        num_patches = sum(frames * height * width for frames, height, width in self._grids)
        if num_patches != len(self._patches_PC):
            raise RequestError(f"images has {len(self._patches_PC)} patches, grid_thw counts {num_patches}; give both as made")

    @property
    def num_left(self) -> int:
        return len(self._grids) - self._index

    def __next__(self) -> Patches:
        if not self.num_left:
            raise StopIteration
        frames, height, width = self._grids[self._index]
        begin, self._row = self._row, self._row + frames * height * width
        self._index += 1
        return Patches(self._patches_PC[begin : self._row], (frames, height, width))


def _mask(input_ids: Tensor, features: dict[str, Any]) -> Tensor:
    mask_BS = features.get("attention_mask")
    if mask_BS is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if mask_BS.shape != input_ids.shape:
        raise RequestError(f"attention_mask has the shape {list(mask_BS.shape)}, must be that of input_ids")
    return mask_BS.bool()


def _device(device_map: Any) -> torch.device:
    """One device: all of a model is on it. auto: the first GPU, or the CPU."""
    if isinstance(device_map, dict):
        if len(set(map(str, device_map.values()))) != 1:
            raise ConfigError(f"device_map ({device_map}) must name one device for all modules; use 'auto' or 'cuda:0'")
        device_map = next(iter(device_map.values()))
    if device_map in (None, "auto", "balanced", "sequential"):
        available = device_map is not None and torch.cuda.is_available()
        return torch.device("cuda" if available else "cpu")
    try:
        return torch.device(device_map)
    except RuntimeError as error:
        raise ConfigError(
            f"device_map ({device_map!r}) must be 'auto' or a torch device such as 'cuda:0'; change it"
        ) from error
