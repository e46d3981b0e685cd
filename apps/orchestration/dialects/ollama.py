"""Ollama: OpenAI's API under /v1, its models under /api/tags, what each can do under /api/show.

It silently cuts a prompt that is longer than the context it gives a model, and gives it seldom all that the model was
trained for: `num_ctx` of its Modelfile, else what the server has been told or takes for usual by version and memory,
which it says only of a model in memory.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from apps.orchestration.dialects.dialect import Answers, Dialect, FoundModel, Question, at, objects, tokens, words
from apps.orchestration.health.conditions import Load

IN_MEMORY, DETAILS = "/api/ps", "/api/show"
LEAST_CONTEXT = 2048
"""Tokens that each version gives a model unless it is told otherwise, or all that it was trained for."""
_NUM_CTX = re.compile(r"^num_ctx\s+(\d{1,10})\s*$", re.MULTILINE | re.ASCII)
USUAL_TAG = ":latest"
"""What Ollama takes for said where a name has no tag, and says itself of each: here it is left out."""
OF_COMPLETION = ("chat", "json_schema")
"""What every model that completes does here too: Ollama has a template for each, and constrains what it samples."""


def read_models(payload: Any) -> list[FoundModel]:
    """The rows of `GET /api/tags`."""
    return [FoundModel(name, owned_by="ollama") for name in _names(payload)]


def complete(model: FoundModel, answers: Answers) -> FoundModel:
    """With what `POST /api/show` says, older ones nothing of capabilities, and `GET /api/ps` if it is in memory."""
    answer = answers.get(DETAILS)
    told = words(at(answer, "capabilities"))
    more = OF_COMPLETION if told and "completion" in told else ()
    return dataclasses.replace(
        model,
        context_length=_context(answer, _in_memory(model.name, answers.get(IN_MEMORY))),
        capabilities=tuple(sorted({*told, *more})) if told else None,
    )


def _context(details: Any, given: int | None) -> int | None:
    """The tokens that a model takes, of which it is `given` so many in memory; None where that can't be told."""
    trained = tokens(_trained_for(at(details, "model_info")))
    wanted = tokens(_num_ctx(at(details, "parameters")), given)
    if wanted is None:
        return trained if trained and trained <= LEAST_CONTEXT else None
    return min(wanted, trained or wanted)


def _num_ctx(parameters: Any) -> int | None:
    """What the Modelfile says, in text of a name and a value per line."""
    found = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
    return int(found[1]) if found else None


def _trained_for(info: Any) -> Any:
    """`llama.context_length`: the name begins with the model's architecture."""
    if not isinstance(info, Mapping):
        return None
    return next((value for name, value in info.items() if str(name).endswith(".context_length")), None)


def _in_memory(name: str, payload: Any) -> int | None:
    """The context that a model has got there; older ones don't tell it."""
    try:
        rows = objects(payload, "models")
    except ValueError:
        return None
    return next((tokens(row.get("context_length")) for row in rows if one_name(str(row.get("name"))) == name), None)


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
    ask_about=lambda model: (Question(DETAILS, {"model": model.name}), Question(IN_MEMORY)),
    complete=complete,
    one_name=one_name,
    health_path="/api/version",
    load_paths=(IN_MEMORY,),
    read_load=read_load,
)
