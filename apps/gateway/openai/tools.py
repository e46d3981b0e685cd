"""The tools that a model may call, and which of them it must."""

from typing import Literal

from msgspec import Struct

from apps.gateway.openai.rules import CHOICES, TOOLS, Name, Object, check_type


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
        check_type(self, TOOLS)


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
        check_type(self, CHOICES)
