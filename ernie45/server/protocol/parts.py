"""The messages of a conversation and the parts of their content.

Knows nothing about what a request asks besides.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from ernie45.processor.messages import MAX_UUID_CHARACTERS
from ernie45.server.protocol.base import Strict
from ernie45.server.protocol.tools import ToolCall

Uuid = Annotated[str, Field(min_length=1, max_length=MAX_UUID_CHARACTERS)]
UUID_DESCRIPTION = (
    "a name of your own for it: with the bytes, remembers them as long as there is room; without, stands for them. Known only "
    "to requests with the same API key and cache_salt"
)


class MediaUrl(Strict):
    """Where a picture or a video is."""

    url: str = Field(min_length=1, description="data:...;base64,..., http(s)://..., or file://... if a folder is allowed")
    detail: Literal["auto"] | None = Field(None, description="only auto: the resolution follows the picture")


# Some clients write the address without the object around it.
_MediaUrl = Annotated[MediaUrl, BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value)]


class TextPart(Strict):
    """A text among other parts."""

    type: Literal["text"] = Field(description="text")
    text: str = Field(description="the text; control tokens written in it stay text")


class ImagePart(Strict):
    """A picture among other parts."""

    type: Literal["image_url"] = Field(description="image_url")
    image_url: _MediaUrl | None = Field(None, description="where the picture is; may be left out with a known uuid")
    uuid: Uuid | None = Field(None, description=UUID_DESCRIPTION)

    @model_validator(mode="after")
    def _is_somewhere(self) -> "ImagePart":
        if self.image_url is None and self.uuid is None:
            raise PydanticCustomError("missing_source", "image_url must be given, or a uuid that stands for it")
        return self


class VideoPart(Strict):
    """A video among other parts."""

    type: Literal["video_url"] = Field(description="video_url")
    video_url: _MediaUrl | None = Field(None, description="where the video is; may be left out with a known uuid")
    uuid: Uuid | None = Field(None, description=UUID_DESCRIPTION)

    @model_validator(mode="after")
    def _is_somewhere(self) -> "VideoPart":
        if self.video_url is None and self.uuid is None:
            raise PydanticCustomError("missing_source", "video_url must be given, or a uuid that stands for it")
        return self


def _content_form(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


Text = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], Tag("parts")],
    Discriminator(_content_form),
]
TextAndMedia = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]], Tag("parts")],
    Discriminator(_content_form),
]


class SystemMessage(Strict):
    """What the model is told before the conversation."""

    role: Literal["system"] = Field(description="system")
    content: Text = Field(description="the instructions")
    name: str | None = Field(None, description="who speaks; has no effect")


class DeveloperMessage(Strict):
    """The same by its newer name."""

    role: Literal["developer"] = Field(description="developer")
    content: Text = Field(description="the instructions")
    name: str | None = Field(None, description="who speaks; has no effect")


class UserMessage(Strict):
    """What the user says and shows."""

    role: Literal["user"] = Field(description="user")
    content: TextAndMedia = Field(description="a text, or parts of text, pictures and videos")
    name: str | None = Field(None, description="who speaks; has no effect")


class AssistantMessage(Strict):
    """What the model answered before."""

    role: Literal["assistant"] = Field(description="assistant")
    content: Text | None = Field(None, description="the answer")
    tool_calls: list[ToolCall] | None = Field(None, max_length=1024, description="functions that it called")
    reasoning_content: str | None = Field(None, description="the thought that led to the content")
    name: str | None = Field(None, description="who speaks; has no effect")
    # What the SDK's objects bring along when an answer is sent back.
    refusal: None = Field(None, description="only null: this model gives none")
    annotations: Annotated[None, BeforeValidator(lambda value: None if value == [] else value)] = Field(
        None, description="only null or empty"
    )
    audio: None = Field(None, description="only null")
    function_call: None = Field(None, description="only null: see tool_calls")


class ToolMessage(Strict):
    """What a function gave back. The model is shown results in the order of the calls, by tool_call_id."""

    role: Literal["tool"] = Field(description="tool")
    content: Text = Field(description="the result, as the model shall read it")
    tool_call_id: str | None = Field(None, description="which call this is the result of")
    name: str | None = Field(None, description="of the function; has no effect")


Message = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]
