"""vLLM's OpenAI-compatible server: all its models are in memory, and its load is in its metrics."""

import dataclasses

import msgspec

from apps.orchestration.dialects import exposition, openai
from apps.orchestration.dialects.dialect import Answers, objects
from apps.orchestration.health.conditions import Load

MODELS = "/v1/models"


def read_load(answers: Answers) -> Load:
    """What its metrics tell, and that it has what it lists in memory: with its adapters, whatever their number."""
    load = exposition.read_load(answers)
    try:
        rows = objects(answers.get(MODELS), "data")
    except ValueError:
        return load
    return msgspec.structs.replace(load, models=tuple(str(row["id"]) for row in rows if row.get("id")))


DIALECT = dataclasses.replace(
    openai.DIALECT, health_path="/health", load_paths=(MODELS, "/metrics"), read_load=read_load
)
