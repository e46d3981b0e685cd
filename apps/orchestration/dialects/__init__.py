"""One file a kind of server: what to ask it, how to read its answers. Pure."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from apps.orchestration.dialects import citadel, http, llamacpp, ollama, openai, vllm
from apps.orchestration.dialects.dialect import Answers, Dialect, FoundModel, Question

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "openai": openai.DIALECT,
        "ollama": ollama.DIALECT,
        "llamacpp": llamacpp.DIALECT,
        "vllm": vllm.DIALECT,
        "citadel": citadel.DIALECT,
        "http": http.DIALECT,
        "": dataclasses.replace(openai.DIALECT, health_path=http.DIALECT.health_path),  # nobody knows yet
    }
)

__all__ = ["DIALECTS", "Answers", "Dialect", "FoundModel", "Question"]
