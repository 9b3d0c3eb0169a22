"""Text and conversations to token ids and back, without generating.

Knows nothing about HTTP or the engine.
"""

from typing import Any

from ernie45.config.errors import RequestError
from ernie45.server.job import ServedModel
from ernie45.server.logprobs import token_name
from ernie45.server.protocol import DetokenizeRequest, TokenizeRequest
from ernie45.server.translate import check_text_fits, choose_model, conversation_prompt

# A prompt may be measured that does not fit, within reason: a megabyte of text costs a second.
_CONTEXTS = 8


def tokenize(request: TokenizeRequest, model: ServedModel) -> dict[str, Any]:
    """vLLM's answer: count, max_model_len, tokens and, if asked for, token_strs. RequestError for a bad request."""
    choose_model(request.model, model)
    tokenizer = model.processor.tokenizer
    if (request.prompt is None) == (request.messages is None):
        rule = "are both missing" if request.prompt is None else "are both given"
        raise RequestError(f"prompt and messages {rule}; send one of them")
    if request.prompt is not None:
        _check_for_messages_only(request)
        check_text_fits("prompt", request.prompt, _CONTEXTS * model.max_model_len)
        ids = tokenizer.encode(request.prompt, allow_special=True)
    else:
        ids = conversation_prompt(request, model, request.add_generation_prompt is not False).token_ids.tolist()
    answer = {"count": len(ids), "max_model_len": model.max_model_len, "tokens": ids}
    if request.return_token_strs:
        answer["token_strs"] = [token_name(token_id, tokenizer) for token_id in ids]
    return answer


def detokenize(request: DetokenizeRequest, model: ServedModel) -> dict[str, Any]:
    """vLLM's answer: the text under `prompt`. RequestError for an id that no token has."""
    choose_model(request.model, model)
    tokenizer = model.processor.tokenizer
    for index, token_id in enumerate(request.tokens):
        if token_id >= len(tokenizer):
            raise RequestError(f"tokens[{index}] ({token_id}) must be a token id from 0 to {len(tokenizer) - 1}; change it")
    return {"prompt": tokenizer.decode(request.tokens, skip_special_tokens=False)}


def _check_for_messages_only(request: TokenizeRequest) -> None:
    names = "enable_thinking", "reasoning_effort", "chat_template", "chat_template_kwargs", "add_generation_prompt"
    for name in names:
        if getattr(request, name) is not None:
            raise RequestError(f"{name} has no effect on prompt, only on messages; leave it out")
