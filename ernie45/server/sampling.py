"""From the fields of a request that say how tokens are chosen to `SamplingParams`, with the model's own defaults.

Knows nothing about prompts, thoughts or HTTP.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.config.sampling import SamplingParams
from ernie45.processor.tokenizer import Tokenizer
from ernie45.server.protocol.sampling import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, SamplingFields

_SEEDS = 2**63


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """What a request gets that says nothing: FastDeploy's values, unless the model's generation_config.json has others."""

    temperature: float = 1.0
    top_p: float = 0.7
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None

    @classmethod
    def from_dir(cls, folder: str | Path) -> "SamplingDefaults":
        """Read generation_config.json of a model folder, if there is one. `do_sample: false` means greedy."""
        path = Path(folder) / "generation_config.json"
        if not path.is_file():
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            names = ("temperature", "top_p", "top_k", "repetition_penalty")
            found = {name: data[name] for name in names if data.get(name) is not None}
            if data.get("max_new_tokens") is not None:
                found["max_tokens"] = data["max_new_tokens"]
            if data.get("do_sample") is False:
                found["temperature"] = 0.0
            SamplingParams(**found)  # checks the ranges
        except (ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"generation_config.json ({path}) cannot be used: {error}; correct or remove it") from error
        return cls(**found)


def sampling_params(
    request: SamplingFields, defaults: SamplingDefaults, tokenizer: Tokenizer, stop_token_ids: Sequence[int]
) -> SamplingParams:
    """What both kinds of requests say about sampling; `max_tokens` and log-probabilities are for the caller to add.

    stop_token_ids: those of the model, which end an answer unless the request ignores them. RequestError for a bad value.
    """

    def given(name: str) -> Any:
        value = getattr(request, name)
        return getattr(defaults, name) if value is None else value

    ends = () if request.ignore_eos else tuple(stop_token_ids)
    return SamplingParams(
        min_tokens=request.min_tokens or 0,
        temperature=given("temperature"),
        top_p=given("top_p"),
        top_k=max(given("top_k"), 0),
        min_p=request.min_p or 0.0,
        repetition_penalty=given("repetition_penalty"),
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        logit_bias=_logit_bias(request.logit_bias or {}, len(tokenizer)),
        bad_words=_bad_words(request, tokenizer),
        seed=given("seed"),
        stop_token_ids=tuple(dict.fromkeys([*ends, *(request.stop_token_ids or ())])),
    )


def seeds(params: SamplingParams, num: int) -> list[SamplingParams]:
    """The parameters of `num` answers to one prompt: the same but for the seed, which counts on from a given one."""
    if params.seed is None:
        return [params] * num
    return [replace(params, seed=(params.seed + index) % _SEEDS) for index in range(num)]


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """The strings that end an answer. RequestError for too many, an empty or a very long one."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise RequestError(f"stop ({len(strings)} strings) must have at most {MAX_STOP_STRINGS}; send fewer")
    for string in strings:
        if not 0 < len(string) <= MAX_STOP_CHARACTERS:
            raise RequestError(f"stop ({string[:80]!r}) must have 1 to {MAX_STOP_CHARACTERS} characters; change it")
    return strings


def _logit_bias(bias: dict[str, float], num_tokens: int) -> tuple[tuple[int, float], ...]:
    entries: dict[int, float] = {}
    for name, value in bias.items():
        if not (name.isascii() and name.isdigit() and len(name) <= 10 and int(name) < num_tokens):
            rule = f"logit_bias ({name[:80]!r}) must be a token id from 0 to {num_tokens - 1}; see /tokenize"
            raise RequestError(rule)
        entries[int(name)] = float(value)
    return tuple(entries.items())


def _bad_words(request: SamplingFields, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """A word has other tokens at the beginning of a text than behind a space; both are meant."""
    sequences: list[tuple[int, ...]] = []
    for word in request.bad_words or ():
        if not word.strip():
            raise RequestError(f"bad_words ({word[:80]!r}) must be texts of more than white space; remove it")
        bare = word.lstrip()
        sequences += [tuple(tokenizer.encode(text)) for text in (bare, f" {bare}")]
    for item in request.bad_words_token_ids or ():
        sequence = (item,) if isinstance(item, int) else tuple(item)
        if not sequence:
            raise RequestError("bad_words_token_ids ([]) must be ids or lists of at least one id; remove the empty list")
        sequences.append(sequence)
    _check_ids("bad_words_token_ids", (token_id for sequence in sequences for token_id in sequence), len(tokenizer))
    return tuple(dict.fromkeys(sequences))


def _check_ids(field: str, ids: Iterable[int], num_tokens: int) -> None:
    for token_id in ids:
        if token_id >= num_tokens:
            raise RequestError(f"{field} ({token_id}) must be token ids from 0 to {num_tokens - 1}; see /tokenize")
