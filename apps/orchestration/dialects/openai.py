"""Any server that speaks the OpenAI API and has no habits of its own."""

from collections.abc import Mapping
from typing import Any

from apps.orchestration.dialects import exposition
from apps.orchestration.dialects.dialect import Dialect, FoundModel, at, objects, tokens, words
from citadel.hop import ways_of


def read_models(payload: Any) -> list[FoundModel]:
    """The rows of `GET /v1/models`; vLLM adds `max_model_len`, llama.cpp `meta`, Citadel its own."""
    return [_model(row) for row in objects(payload, "data") if row.get("id")]


def _model(row: Mapping[str, Any]) -> FoundModel:
    length = tokens(
        row.get("max_model_len"),
        at(row, "citadel", "context_length"),
        at(row, "meta", "n_ctx"),
        at(row, "meta", "n_ctx_train"),
        row.get("context_length"),
    )
    told, ways = words(at(row, "citadel", "capabilities")), ways_of(at(row, "citadel", "through"))
    return FoundModel(str(row["id"]), length, str(row.get("owned_by") or ""), told, ways)


DIALECT = Dialect(
    models_path="/v1/models",
    read_models=read_models,
    health_path="/v1/models",
    read_load=exposition.read_load,  # of a page that somebody has named
)
