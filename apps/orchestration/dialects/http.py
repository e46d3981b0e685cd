"""A server of the organisation that is none for inference: a web site, a store of metrics. It has no models."""

from typing import Any

from apps.orchestration.dialects.dialect import Dialect, FoundModel


def read_models(_payload: Any) -> list[FoundModel]:
    """None."""
    return []


DIALECT = Dialect(models_path="", read_models=read_models, health_path="/")
