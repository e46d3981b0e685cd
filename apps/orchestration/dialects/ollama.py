"""Ollama: OpenAI's API under /v1, its models under /api/tags, what each can do under /api/show."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from apps.orchestration.dialects.dialect import Answers, Dialect, FoundModel, Question, at, objects, tokens, words
from apps.orchestration.health.conditions import Load

IN_MEMORY = "/api/ps"
USUAL_TAG = ":latest"
"""What Ollama takes for said where a name has no tag, and says itself of each: here it is left out."""
OF_COMPLETION = ("chat", "json_schema")
"""What every model that completes does here too: Ollama has a template for each, and constrains what it samples."""


def read_models(payload: Any) -> list[FoundModel]:
    """The rows of `GET /api/tags`."""
    return [FoundModel(name, owned_by="ollama") for name in _names(payload)]


def complete(model: FoundModel, answer: Any) -> FoundModel:
    """With what `POST /api/show` says: older ones say nothing of capabilities."""
    told = words(at(answer, "capabilities"))
    more = OF_COMPLETION if told and "completion" in told else ()
    return dataclasses.replace(
        model,
        context_length=tokens(_context_of(at(answer, "model_info"))),
        capabilities=tuple(sorted({*told, *more})) if told else None,
    )


def _context_of(info: Any) -> Any:
    """`llama.context_length`: the name begins with the model's architecture."""
    if not isinstance(info, Mapping):
        return None
    return next((value for name, value in info.items() if str(name).endswith(".context_length")), None)


def _names(payload: Any) -> list[str]:
    return [one_name(str(row["name"])) for row in objects(payload, "models") if row.get("name")]


def one_name(name: str) -> str:
    """A model's name without the tag that is the usual one."""
    return name.removesuffix(USUAL_TAG) or name


def read_load(answers: Answers) -> Load:
    """The models in memory; how busy it is Ollama does not tell."""
    try:
        return Load(models=tuple(_names(answers.get(IN_MEMORY))))
    except ValueError:
        return Load()


DIALECT = Dialect(
    models_path="/api/tags",
    read_models=read_models,
    ask_about=lambda model: Question("/api/show", {"model": model.name}),
    complete=complete,
    one_name=one_name,
    health_path="/api/version",
    load_paths=(IN_MEMORY,),
    read_load=read_load,
)
