"""The requests of OpenAI's API: what the gateway checks, and what it reads for itself.

Fields not named here travel through untouched. A body is decoded only as far as these types look into it.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from apps.gateway.openai.messages import MESSAGE_RULE, PART_RULE, Message, Part
from apps.gateway.openai.rules import (
    CHOICE_RULE,
    MOST_INPUTS,
    TOOL_RULE,
    Bias,
    Name,
    Natural,
    Object,
    Penalty,
    Seed,
    Share,
    Stop,
    Text,
    Whole,
    batch,
    missing,
    needs,
)
from apps.gateway.openai.tools import Function, Named, Tool, ToolChoice
from citadel.decoding import refusal
from citadel.errors import BadRequest

BY_SCHEMA = needs("json_schema")


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
            raise missing("json_schema")


class StreamOptions(Struct):
    """What a stream carries besides chunks."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Prediction(Struct):
    """Text that the answer will mostly be."""

    type: Name
    content: str | list[Annotated[Part, PART_RULE]]


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
    max_completion_tokens: Whole | None = None
    n_predict: Natural | None = None
    """llama.cpp's, before both of the others. Below 0 it has no end, which none may ask for."""
    min_tokens: Natural | None = None
    """vLLM's."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    n_cmpl: Annotated[int, Meta(ge=1, le=128)] | None = None
    """llama.cpp's, before `n`."""
    stop: Stop = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    user: str | None = None

    def longest_answer(self, usual: int) -> int:
        """Tokens that an answer may have at most, by whichever of these fields its server goes; the `usual` ones where
        none says so. So do those that say 0: to some servers (Ollama) that is no bound.
        """
        longest = 0
        for tokens in (self.max_tokens, self.max_completion_tokens, self.n_predict):
            if tokens is not None:
                longest = max(longest, tokens or usual)
        return max(longest or usual, self.min_tokens or 0)


class ChatRequest(Generation, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Annotated[Message, MESSAGE_RULE]], Meta(min_length=1)]
    max_tokens: Whole | None = None
    tools: list[Annotated[Tool, TOOL_RULE]] | None = None
    tool_choice: Annotated[Literal["none", "auto", "required"] | ToolChoice | None, CHOICE_RULE] = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: Literal["none", "auto"] | Named | None = None
    response_format: Annotated[ResponseFormat | None, BY_SCHEMA] = None
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

    @property
    def answers(self) -> int:
        """How many answers are made for it at most, whatever server it is."""
        return max(self.n or 1, self.n_cmpl or 1)


class CompletionRequest(Generation, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[Any], batch(shortest=0)]
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
        return (self.n or 1) * self._prompts

    @property
    def answers(self) -> int:
        """How many answers are made for it at most, whatever server it is: for some the best is chosen from more."""
        return max(self.n or 1, self.n_cmpl or 1, self.best_of or 1) * self._prompts

    @property
    def _prompts(self) -> int:
        return len(self.prompt) if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int) else 1


class EmbeddingRequest(Struct, kw_only=True):
    """`POST /v1/embeddings`."""

    model: Name
    input: Text | Annotated[list[Any], batch(shortest=1)]
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
