"""One request on its way through the pipeline: what was asked, and what has become of it so far."""

from dataclasses import dataclass

from apps.audit.record import Entry as Record
from apps.gateway.inference.doors import Door, Request
from apps.gateway.limits.limiter import Admission
from apps.gateway.openai.schemas import EmbeddingRequest
from apps.orchestration.fleet import Model
from citadel.caller import Caller


@dataclass(slots=True)
class Exchange:
    """One request. `started` is monotonic, in seconds; `via` names the Citadels that it has passed."""

    door: Door
    request: Request
    body: bytes
    caller: Caller
    model: Model
    record: Record
    started: float
    via: str
    streams: bool
    """Whether the client wants the answer piece by piece."""
    admission: Admission | None = None
    key: str = ""
    """Of the cache entry that this request makes."""
    leads: bool = False
    """Whether others wait for what this request brings."""
    settled: bool = False

    @property
    def wants_usage(self) -> bool:
        """Whether the client wants a stream's usage."""
        options = None if isinstance(self.request, EmbeddingRequest) else self.request.stream_options
        return bool(options and options.include_usage)
