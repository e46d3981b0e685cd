"""vLLM's OpenAI-compatible server."""

from apps.orchestration.dialects.openai import DIALECT

__all__ = ["DIALECT"]
