"""llama.cpp's server: some faults of the request come as its own failures, and a stream of completions for several
prompts begins with `data: null`.

It closes the connection after each stream while saying that it keeps it, and each idle connection holds one of its few
HTTP threads for seconds: so each request gets a connection of its own, which beside an inference costs nothing.

With `--sleep-idle-seconds` it unloads a model that nobody uses; `/slots` and `/metrics` count as use and wake it up,
and nothing that it says tells whether it would ever sleep. So a probe asks one of them only where somebody has named it
for this server, and never while the model sleeps or may do so. As a router of several models it loads the one that
`/props?model=` names, so nothing names one.
"""

import dataclasses
from typing import Any

import msgspec

from apps.orchestration.dialects import exposition, openai
from apps.orchestration.dialects.dialect import Answers, FoundModel, Question, at, objects, tokens
from apps.orchestration.health.conditions import Load

PROPERTIES, MODELS = "/props", "/v1/models"
NOT_RULED_OUT = ("chat", "completion", "embedding", "json_schema", "tools")
"""Nothing that it says of a model tells these apart; tools and schemas work with every template."""
_REQUEST_FAULTS = (
    "input is too large",
    "too large to process",
    "exceeds the available context size",
    "does not support embeddings",
    "does not support completions",
    "pooling type",
    "input is not supported",
    "failed to parse",
    "json.exception",
    "missing tool call",
    "unknown reasoning format",
)


def blames_request(status: int, message: str) -> bool:
    """A 500 for an input longer than a batch or a field that it can't read, a 501 for an endpoint that the loaded model
    can't serve.
    """
    return status in (500, 501) and any(fault in message.lower() for fault in _REQUEST_FAULTS)


def is_properties(answer: Any) -> bool:
    """Whether an answer to `GET /props` is llama.cpp's."""
    return bool(
        at(answer, "default_generation_settings") or at(answer, "total_slots") or at(answer, "role") == "router"
    )


def read_models(payload: Any) -> list[FoundModel]:
    """The rows of `GET /v1/models`. A single one answers to any name, but a router's, which says how it is."""
    rows = objects(payload, "data")
    is_single = len(rows) == 1 and "status" not in rows[0]
    return [dataclasses.replace(model, any_name=is_single) for model in openai.read_models(payload)]


def complete(model: FoundModel, answers: Answers) -> FoundModel:
    """With what `/props` says of the only model: the context of one slot, and whether it sees and hears."""
    answer = answers.get(PROPERTIES)
    if at(answer, "role") == "router":
        return dataclasses.replace(model, any_name=False)
    length = tokens(at(answer, "default_generation_settings", "n_ctx"), model.context_length)
    modalities = at(answer, "modalities")
    if not isinstance(modalities, dict):
        return dataclasses.replace(model, context_length=length)
    more = tuple(name for name in ("audio", "vision") if modalities.get(name))
    return dataclasses.replace(model, context_length=length, capabilities=tuple(sorted((*NOT_RULED_OUT, *more))))


def read_load(answers: Answers) -> Load:
    """The models in memory: a router says it of each, a single one may sleep and answers to any name. Load itself only
    where a page for it has been named: metrics, or the slots, which tell of no queue.
    """
    load = exposition.read_load(answers)
    if load.in_flight is None:
        load = msgspec.structs.replace(load, in_flight=_busy_slots(answers))
    try:
        rows = objects(answers.get(MODELS), "data")
    except ValueError:
        return load
    if at(answers.get(PROPERTIES), "is_sleeping") is True:
        return msgspec.structs.replace(load, models=())
    told = {str(row["id"]): _word(at(row, "status", "value")) for row in rows if row.get("id")}
    in_memory = tuple(name for name, status in told.items() if status in (None, "loaded"))
    is_single = list(told.values()) == [None] and at(answers.get(PROPERTIES), "role") != "router"
    return msgspec.structs.replace(load, models=in_memory, any_name=is_single or None)


def may_sleep(answers: Answers) -> bool:
    """Whether its model has been unloaded until it is asked for, or its properties, which say that, did not come."""
    properties = answers.get(PROPERTIES)
    return not isinstance(properties, dict) or properties.get("is_sleeping") is True


def _busy_slots(answers: Answers) -> int | None:
    pages = [page for page in answers.values() if isinstance(page, list)]
    told = [at(slot, "is_processing") for page in pages for slot in page]
    return sum(one is True for one in told) if any(isinstance(one, bool) for one in told) else None


def _word(told: Any) -> str | None:
    return None if told is None else str(told)


DIALECT = dataclasses.replace(
    openai.DIALECT,
    read_models=read_models,
    ask_about=lambda _model: (Question(PROPERTIES),),
    complete=complete,
    health_path="/health",
    load_paths=(PROPERTIES, MODELS),
    read_load=read_load,
    may_sleep=may_sleep,
    blames_request=blames_request,
    empty_event=b"null",
    keeps_connections=False,
)
