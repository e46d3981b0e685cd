"""How a request ends: its place is freed, its outcome recorded and counted, and those who wait for it are told."""

import asyncio
import time

from apps.audit.record import Recorder
from apps.gateway import metrics
from apps.gateway.inference.caching.cache import Entry
from apps.gateway.inference.caching.known import KnownAnswers
from apps.gateway.inference.calls.attempts import Attempts
from apps.gateway.inference.claiming import Claiming
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.http.failures import Failure
from apps.gateway.inference.metering import Meter
from apps.gateway.inference.streams.shared import Reader
from apps.gateway.inference.streams.sse import DONE
from apps.gateway.inference.streams.stream import Interrupted, Stream, as_error
from apps.gateway.inference.usage import estimated, untold_usage
from apps.gateway.limits.admission import Refused
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.waiting import NoPlace
from apps.gateway.workloads import Workloads
from citadel.errors import CitadelError


class Settlement:
    """Each request that is `begun` is settled here once, whatever happens."""

    def __init__(
        self,
        limiter: Limiter,
        claiming: Claiming,
        attempts: Attempts,
        meter: Meter,
        workloads: Workloads,
        recorder: Recorder,
        known: KnownAnswers,
    ):
        self.in_flight = 0
        self.is_cut = False
        """Whether the worker ends and cancels what still runs: then it isn't the client that has left."""
        self._limiter = limiter
        self._claiming = claiming
        self._attempts = attempts
        self._meter = meter
        self._workloads = workloads
        self._recorder = recorder
        self._known = known

    def begun(self) -> None:
        """One more request is to be settled."""
        self.in_flight += 1

    def failed(self, exchange: Exchange, error: CitadelError | Failure | TimeoutError) -> CitadelError:
        """Settles what has failed, and gives what the client is told, with the request's way."""
        shown = as_error(error)
        if isinstance(error, NoPlace):
            exchange.queued_ms = (exchange.queued_ms or 0.0) + error.waited_ms
        shown.way = exchange.headers()  # this request's: who follows another gets the same error
        self.broken_off(exchange, error)
        return shown

    def broken_off(self, exchange: Exchange, error: BaseException) -> None:
        """Settles what ended by an error, or because its client has left."""
        if isinstance(error, asyncio.CancelledError) and not self.is_cut:
            self._settle(exchange, 499, "client_disconnected", 0)
            return
        shown = as_error(error)
        if not isinstance(error, Refused):  # its own limit, which its followers need not have reached
            self._known.land(exchange, shown)
        self._settle(exchange, shown.status_code, shown.code, 0)

    def answered(self, exchange: Exchange, sent: int) -> None:
        """Settles what was answered as a whole, in `sent` bytes."""
        self._settle(exchange, 200, "ok", sent)

    def relay_ended(
        self, exchange: Exchange, source: Stream | Reader | None, sent: int, error: CitadelError | None
    ) -> None:
        """The end of one client's stream; `source` is None where none had begun."""
        if source is None:
            self.broken_off(exchange, error or asyncio.CancelledError())
            return
        if isinstance(source, Stream):
            self.stream_over(exchange, source)
            has_all = source.parser.finished
        else:
            has_all = source.is_at_end
        if error:
            self._known.land(exchange, error)
            self._settle(exchange, 200, error.code, sent)
        else:
            self._settle(exchange, 200, "ok" if has_all else "client_disconnected", sent)

    def stream_over(self, exchange: Exchange, stream: Stream, events: bytes | None = None) -> None:
        """The end of a call's stream: what has come is counted, an interruption is held against the server. `events`
        are all of a stream that ended well and is to be kept, with its usage and its end: another client may want them.
        """
        self._count(exchange, stream)
        if stream.failure:
            if stream.blamed:
                self._attempts.verdicts.failed(stream.server, stream.failure)
            if exchange.call:
                exchange.call.entry["outcome"] = f"interrupted: {stream.failure}"
            self._known.land(exchange, Interrupted())
        elif stream.parser.finished:
            self._attempts.verdicts.succeeded(stream.server)
        self._leave(exchange)
        if events is not None:
            events += untold_usage(exchange, stream.parser) + DONE
            self._known.keep(exchange, Entry(events, True, stream.server.server_id))
        else:
            self._known.land(exchange, None)  # nobody read on, or it has landed

    def keep_nothing(self, exchange: Exchange) -> None:
        """The stream of a request has become too large to be kept."""
        self._known.keep_nothing(exchange)

    def hand_over(self, exchange: Exchange, heir: Exchange, stream: Stream) -> None:
        """The client of `exchange` has left, and its call goes on as the heir's: each record counts its part."""
        self._count(exchange, stream)
        _, charges = self._claiming.used(exchange)
        self._meter.pass_on(exchange, heir)
        exchange.hand_over(heir, charges)
        heir.admission = self._limiter.count_in(heir.admission, heir.caller, heir.model)

    def free(self, exchange: Exchange) -> None:
        """Gives the request's place back, before its client can know that it has ended and send the next."""
        self._leave(exchange)
        if exchange.admission:
            self._limiter.release(exchange.admission)
            exchange.admission = None

    def _leave(self, exchange: Exchange) -> None:
        """No server works for the request any more."""
        self._meter.end(exchange)
        self._attempts.ended(exchange)

    def _settle(self, exchange: Exchange, status: int, outcome: str, sent: int) -> None:
        """The end, once, whatever happened: places freed, outcome recorded and counted. Waits for nothing."""
        if exchange.settled:
            return
        exchange.settled = True
        self._known.land(exchange, None)
        self.free(exchange)
        self._charge(exchange)
        for question in exchange.reserved.questions:
            self._limiter.settle(question, exchange.tokens)
        if exchange.workload and outcome == "ok":  # answered out of the cache
            self._workloads.give_up(exchange.workload, exchange.caller, exchange.model)
        record, seconds = exchange.record, time.monotonic() - exchange.started
        record.status, record.outcome, record.answer_bytes = status, outcome, sent
        record.total_ms = seconds * 1000
        self._recorder.take(record)
        self.in_flight -= 1
        metrics.request_ended(record, seconds)

    def _charge(self, exchange: Exchange) -> None:
        """Puts on record what the request has cost, and takes it out of its caller's budgets."""
        exchange.record.cost, charges = self._claiming.used(exchange)
        for claim in charges:
            if claim.amount:
                self._limiter.charge(*claim)

    def _count(self, exchange: Exchange, stream: Stream) -> None:
        """Puts on record what has come since the last time."""
        usage = stream.parser.usage or estimated(exchange, stream.parser.content_chunks)
        record, counted = exchange.record, stream.counted
        record.prompt_tokens = max(0, (usage.prompt_tokens or 0) - (counted.prompt_tokens or 0))
        record.completion_tokens = max(0, (usage.completion_tokens or 0) - (counted.completion_tokens or 0))
        stream.counted = usage
