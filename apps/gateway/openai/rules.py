"""What fields may hold, and what those of one struct ask of each other: said to msgspec, and to OpenAPI."""

from typing import Annotated, Any, Protocol

from msgspec import UNSET, Meta

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
"""Of one request for embeddings."""
TOOLS = ("function", "custom")
"""The types of tools that are known here; what one is, is in the field of that name."""
CHOICES = (*TOOLS, "allowed_tools")


class Typed(Protocol):
    """What says by its type which of its fields holds it."""

    type: str


def check_type(thing: Typed, known: tuple[str, ...]) -> None:
    """ValueError where a thing of a known type lacks the field of that name."""
    if thing.type in known and getattr(thing, thing.type) in (None, UNSET):
        raise missing(thing.type)


def missing(field: str) -> ValueError:
    """For a field that is not there. In msgspec's own words: it adds where the struct is."""
    return ValueError(f"Object missing required field `{field}`")


def has(field: str, **rules: Object) -> Object:
    """An object that has a field, and what its fields must be."""
    return {"required": [field], "properties": rules}


def either(*rules: Object) -> Meta:
    """What the fields of a struct ask of each other, for OpenAPI: the struct itself says it when it is made."""
    return Meta(extra_json_schema={"anyOf": list(rules)})


def needs(*kinds: str) -> Meta:
    """What a thing must hold that has one of these types, for OpenAPI: an object in the field of that name."""
    return Meta(
        extra_json_schema={
            "allOf": [
                {"if": {"properties": {"type": {"enum": [kind]}}}, "then": has(kind, **{kind: {"type": "object"}})}
                for kind in kinds
            ]
        }
    )


def batch(*, shortest: int) -> Meta:
    """What a list of inputs may hold, for OpenAPI: token ids of one input, or up to `MOST_INPUTS` inputs."""
    text: Object = {"type": "string", "minLength": shortest}
    token: Object = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    tokens: Object = {"type": "array", "items": token, "minItems": 1}
    batches: list[Object] = [{"items": item, "maxItems": MOST_INPUTS} for item in (text, tokens)]
    return Meta(min_length=1, extra_json_schema={"anyOf": [{"items": token}, *batches]})


TOOL_RULE, CHOICE_RULE = needs(*TOOLS), needs(*CHOICES)
