"""One file a kind of server: what to ask it, how to read its answers. Pure."""

from collections.abc import Mapping
from types import MappingProxyType

from apps.orchestration.dialects import llamacpp, ollama, openai, vllm
from apps.orchestration.dialects.dialect import Dialect, FoundModel

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {"openai": openai.DIALECT, "ollama": ollama.DIALECT, "llamacpp": llamacpp.DIALECT, "vllm": vllm.DIALECT}
)

__all__ = ["DIALECTS", "Dialect", "FoundModel"]
