"""What kind of server is it? What to ask, and how to read that. Pure."""

from typing import Any

from apps.orchestration.dialects.dialect import Answers, at, objects
from apps.orchestration.dialects.llamacpp import is_properties

MODELS, TAGS, PROPERTIES, VERSION, ALIVE = "/v1/models", "/api/tags", "/props", "/version", "/health/live"
PATHS = (MODELS, TAGS, PROPERTIES, VERSION, ALIVE)
"""Asked all at once; none of them loads a model."""


def kind_of(answers: Answers) -> str:
    """The kind that has answered `PATHS` like this, the most telling signs first: some answer in others' ways too."""
    rows = _rows(answers.get(MODELS), "data")
    owners = {str(row.get("owned_by")) for row in rows or ()}
    if any("citadel" in row for row in rows or ()) or at(answers.get(ALIVE), "status") == "alive":
        return "citadel"
    if is_properties(answers.get(PROPERTIES)) or "llamacpp" in owners:
        return "llamacpp"
    if _rows(answers.get(TAGS), "models") is not None:
        return "ollama"
    if "vllm" in owners or (rows is not None and isinstance(at(answers.get(VERSION), "version"), str)):
        return "vllm"
    return "http" if rows is None else "openai"


def _rows(answer: Any, key: str) -> list[Any] | None:
    """The rows of a list of models; None where it is none."""
    try:
        return list(objects(answer, key))
    except ValueError:
        return None
