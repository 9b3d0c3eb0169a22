"""What makes one generating route different from another: its body, its translation, the form of its answer.

Knows nothing about paths, HTTP or the engine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ernie45.processor.tokenizer import Tokenizer
from ernie45.server.chat_reply import ChatReply
from ernie45.server.completion_reply import CompletionReply
from ernie45.server.completions import translate_completion
from ernie45.server.job import ServedModel, Task
from ernie45.server.protocol import ApiRequest, ChatRequest, CompletionRequest
from ernie45.server.reply import Reply
from ernie45.server.translate import has_media, translate

R = TypeVar("R", bound=ApiRequest)


def _no_media(_: object) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Endpoint(Generic[R]):
    """One way of asking.

    request    the model of the body.
    translate  a checked body to a task; runs in a thread.
    reply      begins the answer to a task.
    has_media  whether translating a body fetches or decodes pictures.
    """

    request: type[R]
    translate: Callable[[R, ServedModel], Task]
    reply: Callable[[Task, Tokenizer], Reply]
    has_media: Callable[[R], bool] = _no_media


CHAT = Endpoint(request=ChatRequest, translate=translate, reply=ChatReply, has_media=has_media)
COMPLETIONS = Endpoint(request=CompletionRequest, translate=translate_completion, reply=CompletionReply)
