"""The bodies of /tokenize and /detokenize, in vLLM's form.

Knows nothing about what becomes of them.
"""

from typing import Any, ClassVar

from pydantic import Field

from ernie45.server.protocol.base import ApiRequest, TokenId
from ernie45.server.protocol.chat import ConversationFields

# Nothing is ever put around a text here, so both values ask for the same.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"add_special_tokens": (True, False), "continue_final_message": (False,)}


class TokenizeRequest(ConversationFields):
    """Body of POST /tokenize: a text, or a conversation as a chat request has it."""

    model: str | None = Field(None, description="a name listed by /v1/models; may be left out")
    prompt: str | None = Field(None, description="a text, taken as it is: control tokens written in it are themselves")
    add_generation_prompt: bool | None = Field(
        None, description="with messages: whether the prompt of an answer follows; default: yes"
    )
    return_token_strs: bool | None = Field(None, description="send the text of each token too; default: no")

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = _NEUTRAL


class DetokenizeRequest(ApiRequest):
    """Body of POST /detokenize."""

    model: str | None = Field(None, description="a name listed by /v1/models; may be left out")
    tokens: list[TokenId] = Field(max_length=2**20, description="token ids; those of control tokens become their names")
