"""The OpenAI-compatible doors."""
