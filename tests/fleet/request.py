"""One HTTP request as the server read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(slots=True)
class Request:
    """A request read to its end. ``headers`` have lower-case names; of repeated ones the last counts."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    version: str = "1.1"
    keep_alive: bool = True
    too_large: bool = False
    _json: Any = msgspec.UNSET

    def json(self) -> Any:
        """The body as JSON, decoded once; raises msgspec.DecodeError when it is none."""
        if self._json is msgspec.UNSET:
            self._json = msgspec.json.decode(self.body)
        return self._json
