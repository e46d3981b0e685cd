"""What Redis is asked for a request, and what comes of it: an admission, or a refusal that says why. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from apps.gateway.access.signatures.nonce import Nonce
from apps.gateway.limits.budgets import Claim
from apps.gateway.limits.quotas import Quota, Terms
from apps.gateway.limits.waiting import Place, Wanted
from citadel.answer import Headers
from citadel.errors import LimitExceeded
from citadel.redis import Argument

GLOBAL, REQUESTS, AT_ONCE, TOKENS, TOO_LARGE, SPENT, UNKNOWN_SPENT, USED_BEFORE = 1, 2, 3, 7, 8, 9, 10, 11
TOO_MANY_NONCES = 12
ADMITTED, WAITS, ROOM_IS_FULL, TOO_LONG = 0, 4, 5, 6
WINDOW_MS = 60_000
_BEFORE, _ONCE, _USING = -1, -2, -3
"""Instead of the number of quotas: the request was admitted before, and needs but more of budgets, or a place; first it
uses up a nonce; a workload's place is its own."""
_REASONS = {
    GLOBAL: ("All clients together send more requests than this Citadel admits.", "global_rate_limit_exceeded"),
    REQUESTS: ("{} has used up its requests a minute.", "rate_limit_exceeded"),
    TOKENS: ("{} has used up its tokens a minute.", "token_limit_exceeded"),
    TOO_LARGE: (
        "{} may have {} tokens a minute, and this request alone may need {}: send less, or ask for a shorter answer.",
        "token_limit_too_small",
    ),
    AT_ONCE: ("{} has as many requests running as it may have at once.", "concurrency_limit_exceeded"),
}

UNLIMITED: Headers = [(b"x-ratelimit-reset-requests", b"0ms")]
"""What a request is told that no number of requests a minute limits."""

NO_RETRY: Headers = [(b"x-should-retry", b"false")]
"""Tells OpenAI's clients that asking again brings nothing."""

Verdict = Sequence[int]
"""As `admit.lua` gives it: verdict, which quota, retry (ms), which server, position, when it was admitted if it
waits (ms), and what is left by each quota."""
WHICH, RETRY, CHOSEN, POSITION, SINCE, LEFT = range(1, 7)
EACH = 3
"""Numbers for each quota: requests and tokens that are left, how many run."""


class Question(NamedTuple):
    """One request to Redis. Without terms it has been admitted before, and needs but a place, or more of budgets."""

    terms: Terms | None
    wanted: Wanted | None
    ticket: str
    tokens: int = 0
    """To be reserved."""
    counted: bool = True
    """Whether it is one of those that run."""
    claims: Sequence[Claim] = ()
    """What it may take out of budgets."""
    nonce: Nonce | None = None
    """That it uses up."""
    workload: Sequence[Argument] = ()
    """Id, caller and model of the one that it uses, and in whose stead it counts."""

    def arguments(self) -> tuple[Argument, ...]:
        """As the script takes them."""
        asked = (_USING, *self.workload, *self._asked()) if self.workload else self._asked()
        return asked if self.nonce is None else (_ONCE, *self.nonce, *asked)

    def _asked(self) -> tuple[Argument, ...]:
        wanted = self.wanted.arguments(self.ticket) if self.wanted else (0,)
        if self.terms is None:
            return (_BEFORE, *self._claimed(), *wanted)
        quotas = self.terms.arguments if self.counted else self.terms.uncounted
        reserved = (self.tokens, self.ticket) if self.tokens else (0,)
        return (len(self.terms.quotas), *reserved, *quotas, *self._claimed(), *wanted)

    def _claimed(self) -> Sequence[Argument]:
        if not self.claims:
            return (0,)
        claims = [part for claim in self.claims for part in (claim.purse.name, claim.purse.limit, claim.amount)]
        return (len(self.claims), *claims)

    @property
    def concurrent(self) -> tuple[Quota, ...]:
        """The quotas among whose running requests it is."""
        return self.terms.concurrent if self.terms and self.counted else ()


class Admission(NamedTuple):
    """A request that may run. Must be released once."""

    question: Question
    left: Sequence[int]
    """By each of its quotas: requests, tokens, how many run; empty where Redis could not be asked."""
    place: Place | None = None
    """Where it goes first; None where no server of its plan has a limit."""

    def headers(self) -> Headers:
        """`x-ratelimit-…`, of the quotas of which the least is left; without a limit there are no numbers to tell."""
        terms = self.question.terms
        return standing(terms.quotas, self.left, WINDOW_MS) if terms and self.left else UNLIMITED


class Refused(LimitExceeded):
    """A limit said no; its headers tell the client where it stands."""

    def __init__(self, message: str, code: str, retry_ms: int | None, told: Headers):
        super().__init__(message, code=code, retry_after=None if retry_ms is None else retry_ms / 1000)
        self._told = told

    def headers(self) -> Headers:
        """`retry-after` and `x-ratelimit-…`."""
        return [*super().headers(), *self._told]


class Overspent(Refused):
    """A budget has not enough left for a request."""

    def __init__(self, claim: Claim):
        self.claim = claim
        purse = claim.purse
        period = "" if purse.budget.period == "total" else f" of this {purse.budget.period}"
        later = f" It begins anew on {purse.ends} (UTC)." if purse.ends else ""
        message = f"{purse.whose} has not enough left of its budget of {purse.told(purse.limit)}{period}"
        need = f"for this request, which may take {purse.told(claim.amount)}"
        super().__init__(f"{message} {need}.{later}", "budget_exceeded", None, NO_RETRY)


def refusal(verdict: int, question: Question, which: int, retry_ms: int, told: Headers) -> Refused:
    """What a request is told that a quota refuses, or the limit of all together."""
    message, code = _REASONS[verdict]
    if which >= 0 and question.terms:
        quota = question.terms.quotas[which]
        message = message.format(quota.whose, quota.tokens, question.tokens)
    if verdict == TOO_LARGE:
        return Refused(message, code, None, [*told, *NO_RETRY])
    if verdict != AT_ONCE:  # of which nobody knows when one ends
        message += f" One more may come in {duration(retry_ms).decode()}."
    return Refused(message, code, retry_ms, told)


def standing(quotas: Sequence[Quota], left: Sequence[int], reset_ms: int) -> Headers:
    """`x-ratelimit-…`, when all of a window is free again in so many milliseconds."""
    headers: Headers = []
    requests = [(rest, quota.requests) for quota, rest in zip(quotas, left[::EACH], strict=True) if quota.requests]
    tokens = [(rest, quota.tokens) for quota, rest in zip(quotas, left[1::EACH], strict=True) if quota.tokens]
    for what, limited in ((b"requests", requests), (b"tokens", tokens)):
        if limited:
            rest, limit = min(limited)
            headers += [
                (b"x-ratelimit-limit-" + what, b"%d" % limit),
                (b"x-ratelimit-remaining-" + what, b"%d" % rest),
                (b"x-ratelimit-reset-" + what, duration(reset_ms)),
            ]
    return headers or UNLIMITED


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
