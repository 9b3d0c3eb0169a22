"""Log-probabilities as the two kinds of answers have them.

Knows nothing about how they came about.
"""

from collections.abc import Sequence
from typing import Any

from ernie45.config.sampling import TokenLogprob
from ernie45.processor.tokenizer import Tokenizer

_LEAST = -9999.0  # what OpenAI sends for a token that cannot be; JSON has no infinity


def chat_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """OpenAI's `logprobs` of a chat choice. bytes: what the token stands for, as its text may be half a character."""
    content = [
        _token(item.token_id, item.logprob, tokenizer)
        | {"top_logprobs": [_token(token_id, logprob, tokenizer) for token_id, logprob in item.top]}
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    logprobs: Sequence[TokenLogprob | None], tokenizer: Tokenizer, first_id: int | None, offset: int
) -> tuple[dict[str, Any], int]:
    """OpenAI's older `logprobs`, and the offset behind them.

    first_id: the token that the entry None stands for: nothing comes before the first token of a prompt, so it has no
    probability. offset: characters of the answer before these tokens.
    """
    result: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for item in logprobs:
        token_id = item.token_id if item else first_id
        assert token_id is not None, "only the first token of a prompt has no log-probability"
        name = token_name(token_id, tokenizer)
        result["tokens"].append(name)
        result["token_logprobs"].append(finite(item.logprob) if item else None)
        result["top_logprobs"].append(_top(item, tokenizer) if item else None)
        result["text_offset"].append(offset)
        offset += len(_text(token_id, tokenizer))
    return result, offset


def token_name(token_id: int, tokenizer: Tokenizer) -> str:
    """A token's text; `bytes:\\xe5` for part of a character, as OpenAI writes it, so that names stay distinct."""
    data = tokenizer.bytes_of(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """A number that JSON has."""
    return max(logprob, _LEAST)


def _top(item: TokenLogprob, tokenizer: Tokenizer) -> dict[str, float]:
    """The likeliest tokens and, always, the one that was chosen. Of two tokens with one text the likelier counts."""
    top: dict[str, float] = {}
    for token_id, logprob in (*item.top, (item.token_id, item.logprob)):
        top.setdefault(token_name(token_id, tokenizer), finite(logprob))
    return top


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.bytes_of(token_id)
    return {"token": data.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(data)}


def _text(token_id: int, tokenizer: Tokenizer) -> str:
    return tokenizer.bytes_of(token_id).decode(errors="ignore")
