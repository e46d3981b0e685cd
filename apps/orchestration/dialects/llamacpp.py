"""llama.cpp's server: some faults of the request come as its own failures, and a stream of completions for several
prompts begins with `data: null`.

It closes the connection after each stream while saying that it keeps it, and each idle connection holds one of its few
HTTP threads for seconds: so each request gets a connection of its own, which beside an inference costs nothing.
"""

import dataclasses

from apps.orchestration.dialects import openai

_REQUEST_FAULTS = (
    "input is too large",
    "too large to process",
    "exceeds the available context size",
    "does not support embeddings",
    "does not support completions",
    "pooling type",
    "image input is not supported",
)


def blames_request(status: int, message: str) -> bool:
    """A 500 for an input longer than a batch, a 501 for an endpoint that the loaded model can't serve."""
    return status in (500, 501) and any(fault in message.lower() for fault in _REQUEST_FAULTS)


DIALECT = dataclasses.replace(
    openai.DIALECT, blames_request=blames_request, empty_event=b"null", keeps_connections=False
)
