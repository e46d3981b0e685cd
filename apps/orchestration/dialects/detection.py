"""What kind of server is it? What to ask, and how to read that. Pure."""

from typing import Any

from apps.orchestration.dialects.dialect import Answers, at, objects
from apps.orchestration.dialects.llamacpp import is_properties

MODELS, TAGS, PROPERTIES, VERSION = "/v1/models", "/api/tags", "/props", "/version"
HEALTH, ALIVE = "/health", "/health/live"
PATHS = (MODELS, TAGS, PROPERTIES, VERSION, HEALTH, ALIVE)
"""Asked all at once; none of them loads a model."""


def kind_of(answers: Answers) -> str:
    """The kind that has answered `PATHS` like this, the most telling signs first: some answer in others' ways too.

    The rows of a list tell best. Where it is empty, other pages do, if they are all there: LocalAI has a version too.
    """
    rows = _rows(answers.get(MODELS), "data")
    owners = {str(row.get("owned_by")) for row in rows or ()}
    has_none = rows == []
    if any("citadel" in row for row in rows or ()) or (has_none and at(answers.get(ALIVE), "status") == "alive"):
        return "citadel"
    if is_properties(answers.get(PROPERTIES)) or "llamacpp" in owners:
        return "llamacpp"
    if _rows(answers.get(TAGS), "models") is not None:
        return "ollama"
    has_version = isinstance(at(answers.get(VERSION), "version"), str)
    if "vllm" in owners or (has_none and has_version and HEALTH in answers):
        return "vllm"
    return "http" if rows is None else "openai"


def _rows(answer: Any, key: str) -> list[Any] | None:
    """The rows of a list of models; None where it is none."""
    try:
        return list(objects(answer, key))
    except ValueError:
        return None
