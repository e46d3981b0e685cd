"""Any server that speaks the OpenAI API and has no habits of its own."""

from collections.abc import Mapping
from typing import Any

from apps.orchestration.dialects.dialect import Dialect, FoundModel


def read_models(payload: Mapping[str, Any]) -> list[FoundModel]:
    """The rows of `GET /v1/models`; vLLM adds `max_model_len`, llama.cpp `meta.n_ctx_train`, Citadel its own."""
    return [_model(row) for row in payload.get("data") or [] if isinstance(row, Mapping) and row.get("id")]


def _model(row: Mapping[str, Any]) -> FoundModel:
    details = {**(row.get("meta") or {}), **(row.get("citadel") or {})}
    length = row.get("max_model_len") or details.get("context_length") or details.get("n_ctx_train")
    return FoundModel(str(row["id"]), int(length) if length else None, str(row.get("owned_by") or ""))


DIALECT = Dialect(models_path="/v1/models", read_models=read_models)
