"""One request on its way through the pipeline: what was asked, and what has become of it so far."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from apps.audit.record import Entry as Record
from apps.gateway.access.signatures.nonce import Nonce
from apps.gateway.inference.calls.call import Call
from apps.gateway.inference.doors import Door, Request
from apps.gateway.inference.reserved import NOTHING, Reserved
from apps.gateway.limits.admission import Admission
from apps.gateway.limits.budgets import Claim, Purse, day_of, purses
from apps.gateway.limits.waiting import PRIORITIES, Place
from apps.gateway.openai.schemas import EmbeddingRequest
from apps.orchestration.fleet import Model, Server
from apps.orchestration.routing.plan import ANYTHING, Needs
from citadel.answer import Headers
from citadel.caller import Caller
from citadel.errors import BadRequest

NORMAL = PRIORITIES["normal"]
_COUNTS = [b"%d" % number for number in range(10)]


class Source(Protocol):
    """A stream of which an answer comes."""

    def stop(self, unpaid: Claim) -> None:
        """Ends it for the one who reads it, by Overspent: there is not enough for that."""


@dataclass(slots=True, eq=False)
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
    needs: Needs = ANYTHING
    nonce: Nonce | None = None
    """Of a signed request; None once it is used up."""
    priority: int = NORMAL
    workload: bytes = b""
    """For which a place is held that this request is to use, as the client says; empty once it has it."""
    admission: Admission | None = None
    """By which it counts among those that run."""
    reserved: Reserved = NOTHING
    """Until it is settled."""
    spent: int = 0
    """Tokens that its call had used for others, who have left."""
    settled_tokens: int = 0
    """Of those that its calls have used, for which no reservation stands any more."""
    worked: float = 0.0
    """Seconds of servers that a call has taken which is another's now."""
    place: Place | None = None
    """Held on a server that it is to go to."""
    calls: list[Call[Any]] = field(default_factory=list)
    """All that were made for it."""
    call: Call[Any] | None = None
    """The one that is answered."""
    source: Source | None = None
    """What its stream comes from, once that has begun."""
    others: Sequence[Server] = ()
    """That may be asked when this one fails."""
    is_answered: bool = False
    """Whether a server's answer has begun to come: a whole one, which may take long to its end. A stream begins with
    content: what comes before may be sent while the prompt is still being read.
    """
    queued_ms: float | None = None
    """How long it waited for a place; None where it needed none."""
    suspected: bool = False
    """Whether servers fail by it."""
    key: str = ""
    """Of the cache entry that this request makes."""
    leads: bool = False
    """Whether others wait for what this request brings."""
    settled: bool = False

    def answer_comes(self) -> None:
        """A server's answer has begun."""
        self.is_answered = True

    def hand_over(self, heir: "Exchange", used: Sequence[Claim]) -> None:
        """Another goes on with the call that this request has made, and brings others what it would have brought.

        To it goes what was reserved for the call, of the purses that are its own too without what is `used` up to now.
        """
        heir.call, heir.place, heir.key, heir.leads = self.call, self.place, self.key, self.leads
        self.call, self.place, self.leads = None, None, False
        self.reserved, goes_over = self.reserved.parted(used, heir.pays_out_of)
        heir.reserved = heir.reserved.also(*goes_over.questions)
        heir.spent = self.tokens
        if heir.call:
            self._pay_until_now(heir.call)
            heir.calls.append(heir.call)
            heir.call.entry = {**heir.call.entry}  # this one stands in a record that may be on its way
            heir.record.attempts.append(heir.call.entry)

    def _pay_until_now(self, call: Call[Any]) -> None:
        self.worked += call.seconds
        self.calls.remove(call)
        call.paid_from = time.monotonic()

    def pays_out_of(self, purse: Purse) -> bool:
        """Whether that is one of its caller's."""
        return any(own.name == purse.name for own in self.purses)

    @property
    def purses(self) -> tuple[Purse, ...]:
        """What its caller's budgets bound on its day."""
        return purses(self.caller.budgets, day_of(self.record.at))

    def unclaimed(self, owner: "Exchange") -> tuple[Purse, ...]:
        """Of what it would pay the rest of another's call, where neither has claimed anything for that yet."""
        claimed = {claim.purse.name for request in (owner, self) for claim in request.reserved.claims()}
        return tuple(purse for purse in self.purses if purse.name not in claimed)

    @property
    def tokens(self) -> int:
        """That its call has used, as far as they are counted."""
        told = self.spent + self.record.prompt_tokens + self.record.completion_tokens
        return max(0, told - self.settled_tokens)

    @property
    def seconds(self) -> float:
        """Of all the servers' time that it pays, until now."""
        return self.worked + sum(call.seconds for call in self.calls)

    @property
    def elapsed_ms(self) -> float:
        """Since it began."""
        return (time.monotonic() - self.started) * 1000

    def headers(self) -> Headers:
        """What its answer tells of its way."""
        record = self.record
        tried = len(record.attempts)
        headers: Headers = [
            (b"x-citadel-cache", record.cache.encode()),
            (b"x-citadel-attempts", _COUNTS[tried] if tried < len(_COUNTS) else b"%d" % tried),
            (b"openai-processing-ms", b"%d" % self.elapsed_ms),
        ]
        if record.server:
            headers.append((b"x-citadel-server", record.server.encode()))
        if self.admission:
            headers += self.admission.headers()
        if self.queued_ms is not None:
            headers.append((b"x-citadel-queue-ms", b"%d" % self.queued_ms))
        return headers

    @property
    def wants_usage(self) -> bool:
        """Whether the client wants a stream's usage."""
        options = None if isinstance(self.request, EmbeddingRequest) else self.request.stream_options
        return bool(options and options.include_usage)


def priority_of(headers: Mapping[bytes, bytes], caller: Caller) -> int:
    """The priority that a client asks for, lowered to the highest that it may have; BadRequest for one that there
    isn't.
    """
    asked = headers.get(b"x-citadel-priority")
    if asked is None:
        return min(NORMAL, caller.max_priority)
    priority = PRIORITIES.get(asked.decode("latin-1").lower())
    if priority is None:
        raise BadRequest(f"x-citadel-priority is one of {', '.join(PRIORITIES)}.", param="x-citadel-priority")
    return min(priority, caller.max_priority)
