"""What the data plane's views find on a request."""

from collections.abc import MutableMapping
from typing import Any, Protocol

from apps.gateway.access.signatures.nonce import Nonce
from apps.gateway.inference.pipeline import Pipeline
from apps.gateway.runtime import Runtime
from citadel.caller import Caller


class GatewayRequest(Protocol):
    """A request on the lean path: the shell makes it, authentication adds `auth`."""

    auth: Caller
    nonce: Nonce | None
    """Of a signed request for a model's work, to be used up when it is let in."""
    method: str | None
    path: str
    scope: MutableMapping[str, Any]
    raw_headers: dict[bytes, bytes]
    identity: str
    runtime: Runtime

    @property
    def body(self) -> bytes:
        """The whole body."""

    @property
    def pipeline(self) -> Pipeline:
        """The worker's pipeline."""
