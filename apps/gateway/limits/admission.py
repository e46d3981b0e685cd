"""What Redis is asked for a request, and what comes of it: an admission, or a refusal that says why. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from apps.gateway.limits.waiting import Place, Wanted
from citadel.answer import Headers
from citadel.errors import LimitExceeded
from citadel.redis import Argument

AT_ONCE = 3
ADMITTED, WAITS, ROOM_IS_FULL, TOO_LONG = 0, 4, 5, 6
_REASONS = {
    1: ("All clients together send more requests than this Citadel admits.", "global_rate_limit_exceeded"),
    2: ("This key has used up its requests a minute.", "rate_limit_exceeded"),
    AT_ONCE: ("This key has as many requests running as it may have at once.", "concurrency_limit_exceeded"),
}

UNLIMITED: Headers = [(b"x-ratelimit-reset-requests", b"0ms")]
"""What a request is told that no number of requests a minute limits."""

Verdict = Sequence[int]


class Question(NamedTuple):
    """One request to Redis. Without a client it has been admitted before, and needs but a place."""

    client: str
    per_minute: int
    concurrent: int
    wanted: Wanted | None
    ticket: str

    def arguments(self) -> tuple[Argument, ...]:
        """As the script takes them."""
        wanted = self.wanted
        return (self.client, self.per_minute, self.concurrent, *(wanted.arguments(self.ticket) if wanted else (0,)))


class Admission(NamedTuple):
    """A request that may run. Must be released once."""

    client: str
    concurrent: int
    """What the client may run at once, if this request counts against that, else 0."""
    limit: int
    remaining: int
    reset_ms: int
    place: Place | None = None
    """Where it goes first; None where no server of its plan has a limit."""

    def headers(self) -> Headers:
        """`x-ratelimit-…`; without a limit there are no numbers to tell."""
        if not self.limit:
            return UNLIMITED
        return [
            (b"x-ratelimit-limit-requests", b"%d" % self.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % self.remaining),
            (b"x-ratelimit-reset-requests", duration(self.reset_ms)),
        ]


class Refused(LimitExceeded):
    """A limit said no; its headers tell the client where it stands."""

    def __init__(self, verdict: int, retry_ms: int, standing: Headers):
        message, code = _REASONS[verdict]
        if verdict != AT_ONCE:  # of which nobody knows when one ends
            message += f" One more may come in {duration(retry_ms).decode()}."
        super().__init__(message, code=code, retry_after=retry_ms / 1000)
        self._standing = standing

    def headers(self) -> Headers:
        """`retry-after` and `x-ratelimit-…`."""
        return [*super().headers(), *self._standing]


def chosen_place(wanted: Wanted | None, chosen: int) -> Place | None:
    """What the script has chosen."""
    if wanted is None or chosen < 0:
        return None
    server, limit = wanted.servers[chosen]
    return Place(server, held=limit > 0, limit=limit)


def held_on(wanted: Wanted | None, chosen: int) -> str:
    """The server on which the script has taken a place, the one of `chosen_place`; empty where it has taken none."""
    if wanted is None or chosen < 0:
        return ""
    server, limit = wanted.servers[chosen]
    return server if limit else ""


def duration(milliseconds: int) -> bytes:
    """A time as OpenAI writes it in its headers: `1m0s`, `6s`, `12ms`."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds
