"""What makes one generating route different from another: its body, its translation, the form of its answer.

Knows nothing about paths, HTTP or the engine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ernie45.config.sampling import Grammar
from ernie45.processor.tokenizer import Tokenizer
from ernie45.server.chat_reply import ChatReply
from ernie45.server.completion_reply import CompletionReply
from ernie45.server.completions import translate_completion
from ernie45.server.job import ServedModel, Task
from ernie45.server.media import MediaRequest
from ernie45.server.protocol import ApiRequest, ChatRequest, CompletionRequest
from ernie45.server.reply import Reply
from ernie45.server.structured import unchecked_grammars
from ernie45.server.translate import media_request, translate

R = TypeVar("R", bound=ApiRequest)


MediaOf = Callable[[R, ServedModel], MediaRequest | None]


def no_media(_: object, __: ServedModel) -> None:
    """Of bodies that have no pictures."""


@dataclass(frozen=True, kw_only=True)
class Endpoint(Generic[R]):
    """One way of asking.

    request    the model of the body.
    translate  a checked body to a task; runs in a thread.
    reply      begins the answer to a task.
    media      what is to be loaded before a body is translated, if it has pictures.
    grammars   what is to be compiled before it, in a thread of its own, as it may take long.
    """

    request: type[R]
    translate: Callable[[R, ServedModel], Task]
    reply: Callable[[Task, Tokenizer], Reply]
    media: MediaOf[R] = no_media
    grammars: Callable[[R], list[Grammar]]


def chat_grammars(request: ChatRequest) -> list[Grammar]:
    """Of a form, and of the tools."""
    return unchecked_grammars(request, [tool.function for tool in request.tools or ()])


CHAT = Endpoint(request=ChatRequest, translate=translate, reply=ChatReply, media=media_request, grammars=chat_grammars)
COMPLETIONS = Endpoint(
    request=CompletionRequest, translate=translate_completion, reply=CompletionReply, grammars=unchecked_grammars
)
