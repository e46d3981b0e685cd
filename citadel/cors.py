"""Pages in browsers: what each answer tells them of who may call and read what (Fetch standard, "CORS protocol")."""

from collections.abc import Iterable, Mapping

from citadel.answer import Headers

VARIES = (b"vary", b"origin")
"""Said to everybody: else a cache hands a page what another, or a program, was answered (Fetch, "HTTP caches")."""
READABLE = (
    b"x-request-id, x-citadel-cache, x-citadel-attempts, x-citadel-server, x-citadel-queue-ms, "
    b"x-citadel-queue-position, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    b"x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    b"retry-after, x-should-retry, openai-processing-ms"
)
"""By name: `*` covers no request that carries a key."""


class Cors:
    """The origins that may call."""

    def __init__(self, origins: Iterable[str]):
        self._origins = frozenset(origin.encode() for origin in origins)
        self._all = b"*" in self._origins

    def headers(self, request: Mapping[bytes, bytes]) -> Headers:
        """What the answer to a request with these headers tells."""
        if self._all:
            return self._allowed(b"*", request)
        origin = request.get(b"origin")
        if origin is None or origin not in self._origins:
            return [VARIES]
        return [VARIES, *self._allowed(origin, request)]

    def _allowed(self, origin: bytes, request: Mapping[bytes, bytes]) -> Headers:
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", READABLE),
            (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
            (
                b"access-control-allow-headers",
                request.get(b"access-control-request-headers", b"authorization, content-type"),
            ),
            (b"access-control-max-age", b"600"),
        ]
