"""The messages of a chat."""

from typing import Annotated, Literal

from msgspec import UNSET, Struct, UnsetType

from apps.gateway.openai.rules import TOOL_RULE, TOOLS, Name, Object, Text, check_type, either, has, missing


class ImageUrl(Struct):
    """Where an image is, or the image itself as a `data:` address."""

    url: Text
    detail: str | None = None


class Sound(Struct):
    """A sound in base64."""

    data: str
    format: str


class File(Struct):
    """A file in base64, or the id of one that the server has."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


PARTS = ("text", "image_url", "input_audio", "file", "refusal")
"""The types of content that are known here; each is in the field of its name."""


MEDIA = frozenset(
    ("image_url", "input_image", "image_embeds", "input_audio", "audio_url", "audio_embeds", "video_url", "file")
)
"""Those that are no text, also of servers of some kinds."""


class Part(Struct):
    """A piece of a message's content: text, an image, a sound, a file, or a type that the server knows."""

    type: Name
    text: str | UnsetType = UNSET
    image_url: ImageUrl | Text | UnsetType = UNSET
    input_audio: Sound | UnsetType = UNSET
    file: File | UnsetType = UNSET
    refusal: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        """What the type names is there."""
        check_type(self, PARTS)

    @property
    def data(self) -> str:
        """An image or a sound in base64, or an image's address; empty for all else."""
        if self.type == "image_url" and self.image_url:
            return self.image_url if isinstance(self.image_url, str) else self.image_url.url
        return self.input_audio.data if self.type == "input_audio" and self.input_audio else ""


PART_RULE = either(
    {"properties": {"type": {"not": {"enum": PARTS}}}},
    *(has(part, type={"enum": [part]}) for part in PARTS),
)


class CalledFunction(Struct):
    """A function that the model has called, with its arguments: the JSON text that the model wrote, as a rule."""

    name: Name
    arguments: str | Object | None = None


class CalledCustom(Struct):
    """A tool with text for input that the model has called."""

    name: Name
    input: str


class ToolCall(Struct):
    """A call that the model has made: of a function, a custom tool, or of a kind that the server knows."""

    id: str
    type: Name
    function: CalledFunction | None = None
    custom: CalledCustom | None = None

    def __post_init__(self) -> None:
        """What the type names is there."""
        check_type(self, TOOLS)


class SpokenAnswer(Struct):
    """An earlier answer of the model in sound, which the server has."""

    id: str


SILENT = ("assistant", "function")
"""The roles whose messages need no content."""


class Message(Struct):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Annotated[Part, PART_RULE]] | UnsetType | None = UNSET
    name: str | None = None
    tool_calls: list[Annotated[ToolCall, TOOL_RULE]] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    audio: SpokenAnswer | None = None

    def __post_init__(self) -> None:
        """Only who answers may do so without a word; what a tool brings may be nothing."""
        nothing = self.content is None or self.content is UNSET or (self.content == [] and self.role != "tool")
        if nothing and self.role not in SILENT:
            raise missing("content")


MESSAGE_RULE = either(
    {"properties": {"role": {"enum": SILENT}}},
    has("content", content={"type": ["string", "array"]}, role={"enum": ["tool"]}),
    has("content", content={"type": ["string", "array"], "minItems": 1}, role={"not": {"enum": SILENT}}),
)
