"""The body of a plain completion request.

Knows nothing about what becomes of it.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from ernie45.server.protocol.base import TokenId
from ernie45.server.protocol.sampling import MAX_TOKENS, MAX_TOP_LOGPROBS, SamplingFields
from ernie45.server.protocol.structured import StructuredFields

MAX_PROMPTS = 1024
_Ids = Annotated[list[TokenId], Field(min_length=1)]


def _prompt_form(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return "id_lists"
    if isinstance(first, str):
        return "texts"
    return "ids" if isinstance(value, list) else "text"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS), Tag("texts")]
    | Annotated[_Ids, Tag("ids")]
    | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS), Tag("id_lists")],
    Discriminator(_prompt_form),
]


class CompletionRequest(SamplingFields, StructuredFields):
    """Body of POST /v1/completions."""

    prompt: Prompt = Field(
        description="a text, token ids, or a list of either; text goes to the model as it is, control tokens included"
    )
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="tokens to generate at most; default 16; 0 only with echo"
    )
    echo: bool | None = Field(None, description="whether the answer begins with the prompt; default: no")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="send log-probabilities, and so many of the likeliest tokens beside each"
    )
    best_of: int | None = Field(None, ge=1, description="only the value of n: all answers are sent")

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "suffix": ("",),
        "logits_processors_args": (),
    }
