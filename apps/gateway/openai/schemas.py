"""The requests of OpenAI's API: what the gateway checks, and what it reads for itself.

Fields not named here travel through untouched. A body is decoded only as far as these types look into it.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from citadel.decoding import refusal
from citadel.errors import BadRequest

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[str, Meta(min_length=1)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Whole = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenIds = Annotated[list[Natural], Meta(min_length=1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Stop = str | list[str] | None
Object = dict[str, Any]

MOST_INPUTS = 2048


def _batch(*, shortest: int) -> Meta:
    """What a list of inputs may hold, for OpenAPI: token ids of one input, or up to `MOST_INPUTS` inputs."""
    text: Object = {"type": "string", "minLength": shortest}
    token: Object = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    tokens: Object = {"type": "array", "items": token, "minItems": 1}
    batches: list[Object] = [{"items": item, "maxItems": MOST_INPUTS} for item in (text, tokens)]
    return Meta(min_length=1, extra_json_schema={"anyOf": [{"items": token}, *batches]})


def _either(*rules: Object) -> Meta:
    """What the fields of a struct ask of each other, for OpenAPI: the struct itself says it when it is made."""
    return Meta(extra_json_schema={"anyOf": list(rules)})


def _has(field: str, **rules: Object) -> Object:
    return {"required": [field], "properties": rules}


def _missing(field: str) -> ValueError:
    """In msgspec's own words: it adds where the struct is."""
    return ValueError(f"Object missing required field `{field}`")


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
        if self.type in PARTS and getattr(self, self.type) is UNSET:
            raise _missing(self.type)


_PART = _either(
    {"properties": {"type": {"not": {"enum": PARTS}}}},
    *(_has(part, type={"enum": [part]}) for part in PARTS),
)


def _needs(*kinds: str) -> Meta:
    """What a thing must hold that has one of these types, for OpenAPI: an object in the field of that name."""
    return Meta(
        extra_json_schema={
            "allOf": [
                {"if": {"properties": {"type": {"enum": [kind]}}}, "then": _has(kind, **{kind: {"type": "object"}})}
                for kind in kinds
            ]
        }
    )


_TOOL = _needs("function", "custom")
_CHOICE = _needs("function", "custom", "allowed_tools")
_BY_SCHEMA = _needs("json_schema")


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
        if self.type in ("function", "custom") and getattr(self, self.type) is None:
            raise _missing(self.type)


class SpokenAnswer(Struct):
    """An earlier answer of the model in sound, which the server has."""

    id: str


SILENT = ("assistant", "function")
"""The roles whose messages need no content."""


class Message(Struct):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Annotated[Part, _PART]] | UnsetType | None = UNSET
    name: str | None = None
    tool_calls: list[Annotated[ToolCall, _TOOL]] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    audio: SpokenAnswer | None = None

    def __post_init__(self) -> None:
        """Only who answers may do so without a word; what a tool brings may be nothing."""
        nothing = self.content is None or self.content is UNSET or (self.content == [] and self.role != "tool")
        if nothing and self.role not in SILENT:
            raise _missing("content")


_MESSAGE = _either(
    {"properties": {"role": {"enum": SILENT}}},
    _has("content", content={"type": ["string", "array"]}, role={"enum": ["tool"]}),
    _has("content", content={"type": ["string", "array"], "minItems": 1}, role={"not": {"enum": SILENT}}),
)


class Function(Struct):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class CustomTool(Struct):
    """A tool that the model may call with text."""

    name: Name
    description: str | None = None
    format: Object | None = None


class Tool(Struct):
    """A tool: a function, a custom tool, or a kind that the server knows."""

    type: Name
    function: Function | None = None
    custom: CustomTool | None = None

    def __post_init__(self) -> None:
        """What the type names is there."""
        if self.type in ("function", "custom") and getattr(self, self.type) is None:
            raise _missing(self.type)


class Named(Struct):
    """A function or a custom tool, by its name."""

    name: Name


class AllowedTools(Struct):
    """Those of the tools that the model may call, or must call one of."""

    mode: Literal["auto", "required"]
    tools: list[Object]


class ToolChoice(Struct):
    """The tool that the model must call, those that it may call, or a choice that the server knows."""

    type: Name
    function: Named | None = None
    custom: Named | None = None
    allowed_tools: AllowedTools | None = None

    def __post_init__(self) -> None:
        """What the type names is there."""
        if self.type in ("function", "custom", "allowed_tools") and getattr(self, self.type) is None:
            raise _missing(self.type)


class JsonSchema(Struct):
    """The schema that an answer is to follow. OpenAI wants it to have a name, others don't."""

    name: Name | None = None
    description: str | None = None
    schema: Object | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """Text, any JSON, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema", "json", "grammar", "regex", "structural_tag"]
    json_schema: JsonSchema | None = None

    def __post_init__(self) -> None:
        """JSON by a schema has a schema."""
        if self.type == "json_schema" and self.json_schema is None:
            raise _missing("json_schema")


class StreamOptions(Struct):
    """What a stream carries besides chunks."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Prediction(Struct):
    """Text that the answer will mostly be."""

    type: Name
    content: str | list[Annotated[Part, _PART]]


class Speech(Struct):
    """How an answer in sound is to sound."""

    voice: str | Object
    format: str


class Generation(Struct, kw_only=True):
    """What chat and completions have in common."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Natural | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: Stop = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    user: str | None = None


class ChatRequest(Generation, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Annotated[Message, _MESSAGE]], Meta(min_length=1)]
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    tools: list[Annotated[Tool, _TOOL]] | None = None
    tool_choice: Annotated[Literal["none", "auto", "required"] | ToolChoice | None, _CHOICE] = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: Literal["none", "auto"] | Named | None = None
    response_format: Annotated[ResponseFormat | None, _BY_SCHEMA] = None
    modalities: list[str] | None = None
    audio: Speech | None = None
    prediction: Prediction | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    web_search_options: Object | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    store: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    @property
    def choices(self) -> int:
        """How many choices the answer has."""
        return self.n or 1


class CompletionRequest(Generation, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[Any], _batch(shortest=0)]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None

    def __post_init__(self) -> None:
        """A list is of texts, of token ids, or of lists of them: what a type can't say."""
        if isinstance(self.prompt, list):
            _check_inputs(self.prompt)

    @property
    def choices(self) -> int:
        """How many choices the answer has: as many as prompts, each `n` times."""
        prompts = len(self.prompt) if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int) else 1
        return (self.n or 1) * prompts


class EmbeddingRequest(Struct, kw_only=True):
    """`POST /v1/embeddings`."""

    model: Name
    input: Text | Annotated[list[Any], _batch(shortest=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Whole | None = None
    user: str | None = None

    def __post_init__(self) -> None:
        """One text or token array, or up to 2048 of them."""
        if isinstance(self.input, list):
            _check_inputs(self.input, empty_text=False)

    @property
    def inputs(self) -> list[str | list[int]]:
        """The inputs one by one."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]
        return self.input


def _check_inputs(items: list[Any], *, empty_text: bool = True) -> None:
    if len(items) > MOST_INPUTS and not isinstance(items[0], int):
        raise ValueError(f"must hold at most {MOST_INPUTS} items")
    if isinstance(items[0], int):
        _check_tokens(items)
    elif isinstance(items[0], str):
        if not all(isinstance(item, str) for item in items):
            raise ValueError("must hold texts only, or token arrays only")
        if not empty_text and "" in items:
            raise ValueError("must not hold an empty text")
    else:
        for item in items:
            if not isinstance(item, list) or not item:
                raise ValueError("must hold texts, token ids, or token arrays that aren't empty")
            _check_tokens(item)


def _check_tokens(ids: list[Any]) -> None:
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise ValueError("token ids must be whole numbers from 0 to 2147483647")


_INPUT_FIELDS = {CompletionRequest: "prompt", EmbeddingRequest: "input"}


def bad_request(error: msgspec.DecodeError, schema: type[Struct]) -> BadRequest:
    """The client's error for what msgspec says, with the field in `param`."""
    return refusal(error, _INPUT_FIELDS.get(schema, ""))
