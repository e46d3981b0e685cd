"""What one kind of server has of its own. The rest of it is OpenAI's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model as its server describes it; the context length in tokens where it says so."""

    name: str
    context_length: int | None = None
    owned_by: str = ""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to ask a kind of server for its models, which of its 5xx blame the request, and the data of an event with
    which its streams may begin and which says nothing.
    """

    models_path: str
    read_models: Callable[[Mapping[str, Any]], list[FoundModel]]
    blames_request: Callable[[int, str], bool] = lambda _status, _message: False
    keeps_connections: bool = True
    """Whether a connection can be used for a second request without doubt and without harm."""
    empty_event: bytes = b""
