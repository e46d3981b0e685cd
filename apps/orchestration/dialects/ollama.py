"""Ollama: OpenAI's API under /v1, its models under /api/tags."""

from collections.abc import Mapping
from typing import Any

from apps.orchestration.dialects.dialect import Dialect, FoundModel


def read_models(payload: Mapping[str, Any]) -> list[FoundModel]:
    """The rows of `GET /api/tags`."""
    rows = payload.get("models") or []
    return [
        FoundModel(str(row["name"]), owned_by="ollama") for row in rows if isinstance(row, Mapping) and row.get("name")
    ]


DIALECT = Dialect(models_path="/api/tags", read_models=read_models)
