"""vLLM's OpenAI-compatible server: all its models are in memory, and its load is in its metrics."""

import dataclasses

from apps.orchestration.dialects import exposition, openai

DIALECT = dataclasses.replace(
    openai.DIALECT, health_path="/health", load_paths=("/metrics",), read_load=exposition.read_load
)
