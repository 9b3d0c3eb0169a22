"""What clients may send and what they get: strict models of OpenAI's bodies, with FastDeploy's additions.

Knows nothing about the model or the engine. A field that is not here is refused by name, never dropped.
"""

from ernie45.server.protocol.base import ApiRequest, Strict
from ernie45.server.protocol.chat import ChatRequest, ConversationFields
from ernie45.server.protocol.completions import CompletionRequest
from ernie45.server.protocol.parts import AssistantMessage, Message, UserMessage
from ernie45.server.protocol.tokens import DetokenizeRequest, TokenizeRequest

__all__ = [
    "ApiRequest",
    "AssistantMessage",
    "ChatRequest",
    "CompletionRequest",
    "ConversationFields",
    "DetokenizeRequest",
    "Message",
    "Strict",
    "TokenizeRequest",
    "UserMessage",
]
