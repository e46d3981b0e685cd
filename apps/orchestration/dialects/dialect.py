"""What one kind of server has of its own. The rest of it is OpenAI's.

What a server says is any JSON: reading it never fails but where it is no list of models at all, which is a ValueError.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from apps.orchestration.health.conditions import UNKNOWN, Load
from citadel.hop import Way

Answers = Mapping[str, Any]
"""What a server has answered, by path: JSON, or text where it is none. What it didn't answer well is not there."""
LONGEST_CONTEXT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model as its server describes it; the context length in tokens where it says so."""

    name: str
    context_length: int | None = None
    owned_by: str = ""
    capabilities: tuple[str, ...] | None = None
    """All that it can do, and what can't be ruled out; None where the server does not say."""
    ways: tuple[Way, ...] = ()
    """Through which Citadels, where one tells that; none where the server holds the model itself, or does not say."""
    any_name: bool = False
    """Whether the server answers with it whatever name a request has."""


class Question(NamedTuple):
    """One request to a server: a GET, or a POST of `body`."""

    path: str
    body: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to ask a kind of server for its models, which of its 5xx blame the request, and the data of an event with
    which its streams may begin and which says nothing.
    """

    models_path: str
    """Empty where there are none to be asked for."""
    read_models: Callable[[Any], list[FoundModel]]
    ask_about: Callable[[FoundModel], Sequence[Question]] = lambda _model: ()
    """What a server says more of one model, where to ask for it: each of another path."""
    complete: Callable[[FoundModel, Answers], FoundModel] = lambda model, _answers: model
    """The model with what the answers to these questions say."""
    one_name: Callable[[str], str] = lambda name: name
    """The one name under which a model is known here that has several."""
    health_path: str = "/health"
    """What a probe asks: it loads no model and keeps none in memory that would go."""
    load_paths: tuple[str, ...] = ()
    """What a probe asks besides, with the same promise, for `read_load`."""
    read_load: Callable[[Answers], Load] = lambda _answers: UNKNOWN
    may_sleep: Callable[[Answers], bool] = lambda _answers: False
    """Whether, by these answers to `load_paths`, a page that has been named for its load might wake it."""
    blames_request: Callable[[int, str], bool] = lambda _status, _message: False
    keeps_connections: bool = True
    """Whether a connection can be used for a second request without doubt and without harm."""
    empty_event: bytes = b""


def at(value: Any, *keys: str) -> Any:
    """What stands under `keys` in nested objects; None where something else is there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def objects(value: Any, key: str) -> list[Mapping[str, Any]]:
    """The objects of the list `key`; ValueError where there is no list. A null is an empty one, as Go writes it."""
    has_it = isinstance(value, Mapping) and isinstance(value.get(key, 0), list | None)
    if not has_it:
        raise ValueError(f"no list of {key}")
    return [row for row in value[key] or () if isinstance(row, Mapping)]


def tokens(*told: Any) -> int | None:
    """The first of what is told that is a length in tokens."""
    lengths = (length for length in told if isinstance(length, int) and not isinstance(length, bool))
    return next((length for length in lengths if 0 < length <= LONGEST_CONTEXT), None)


def words(told: Any) -> tuple[str, ...] | None:
    """The words of a list, in order and once each; None where it is none or an empty one."""
    if not isinstance(told, Sequence) or isinstance(told, str):
        return None
    return tuple(sorted({word for word in told if isinstance(word, str) and word})) or None
