"""The story of one inference request, the same for every door:

read → look in the cache → plan → admit → attempt → relay → settle. Who asks is known before (`access/`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping

from apps.audit.record import Entry as Record
from apps.audit.record import Recorder
from apps.gateway import metrics
from apps.gateway.inference import replay
from apps.gateway.inference.attempts import Attempts
from apps.gateway.inference.cache import Entry, ResponseCache
from apps.gateway.inference.coalesce import Flights, Role
from apps.gateway.inference.course import Courses
from apps.gateway.inference.doors import CHAT, LARGE, CachePolicy, Door, body_for, cache_policy, fingerprint
from apps.gateway.inference.embeddings import EmbeddingBatch
from apps.gateway.inference.exchange import Exchange, priority_of
from apps.gateway.inference.failures import Failure
from apps.gateway.inference.names import no_model, usable
from apps.gateway.inference.needs import needs_of
from apps.gateway.inference.relay import Relay, estimate, give_up, untold_usage
from apps.gateway.inference.shared import Reader, Shared
from apps.gateway.inference.sse import DONE, Parser
from apps.gateway.inference.stream import Interrupted, Stream, as_error
from apps.gateway.inference.upstream import Upstream
from apps.gateway.inference.usage import BYTES_PER_TOKEN, estimated, usage_of
from apps.gateway.limits.admission import Refused
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.waiting import NoPlace
from apps.gateway.openai.schemas import EmbeddingRequest
from apps.gateway.workloads import Workloads
from apps.orchestration.dialects import DIALECTS
from apps.orchestration.fleet import EMPTY, Fleet, Model, Server, relocated
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.watch import Watch
from apps.orchestration.routing.plan import Plan
from apps.orchestration.routing.router import Router
from citadel.answer import EVENT_STREAM, JSON, Answer, StreamAnswer
from citadel.caller import Caller
from citadel.deadlines import Deadlines
from citadel.errors import CitadelError
from citadel.hop import VIA
from citadel.sections import Config


class Pipeline:
    """One worker's parts, and the way of a request through them."""

    def __init__(
        self,
        config: Config,
        limiter: Limiter,
        cache: ResponseCache,
        upstream: Upstream,
        recorder: Recorder,
        standings: Standings,
        watch: Watch,
    ):
        self.fleet: Fleet = EMPTY
        self.in_flight = 0
        self.is_cut = False
        """Whether the worker ends and cancels what still runs: then it isn't the client that has left."""
        self.config = config
        self.recorder = recorder
        self.limiter = limiter
        self.standings = standings
        standings.on_move = limiter.look_again_soon
        self._cache = cache
        self._largest_entry = config.cache.max_entry_kb * 1024
        self._upstream = upstream
        self.router = Router(standings, watch, config.routing)
        self.attempts = Attempts(self.router, standings, watch, limiter, config.routing, config.server.workers)
        self._flights = Flights()
        self.workloads = Workloads(limiter, self.router, standings, config.routing)
        self._courses = Courses(self.router, limiter, self.attempts, self.workloads)
        self._deadlines = Deadlines(config.timeouts.client)

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        moved = {now.server_id for was, now in relocated(self.fleet, fleet) if was.url != now.url}
        self.fleet = fleet
        self.standings.forget_all_but(frozenset(fleet.servers.keys() - moved))
        self.router.follow(fleet)
        self.router.paces.forget_all_but(frozenset(fleet.servers.keys() - moved))
        self.attempts.follow(fleet)
        self.workloads.follow(fleet)
        self.limiter.look_again_soon()

    async def answer(
        self, door: Door, caller: Caller, body: bytes, headers: Mapping[bytes, bytes], request_id: str
    ) -> Answer | StreamAnswer:
        """The answer to one request, or a CitadelError. One that names a model which its caller may use is settled
        once, whatever happens; what is refused before leaves no record.
        """
        self.recorder.check_room()
        request = door.read(body) if len(body) <= LARGE else await door.read_large(body)
        model = self.find_model(request.model, caller)
        record = Record(request_id, time.time(), caller.team, caller.key_id, door.name, model.name)
        record.request_bytes = len(body)
        via = headers.get(VIA, b"").decode("latin-1")
        record.stream = not isinstance(request, EmbeddingRequest) and bool(request.stream)
        exchange = Exchange(door, request, body, caller, model, record, time.monotonic(), via, record.stream)
        exchange.priority = priority_of(headers, caller)
        exchange.workload = headers.get(b"x-citadel-workload", b"")
        exchange.needs = needs_of(request, model, headers, self.router.strategy_of(model))
        self.in_flight += 1
        try:
            if exchange.streams:  # which has time limits of its own
                answer = await self._answer(exchange, headers)
            else:
                with self._deadlines:
                    answer = await self._answer(exchange, headers)
        except (CitadelError, Failure, TimeoutError) as error:
            raise self._end(exchange, error) from None
        except BaseException as error:
            self._settle_error(exchange, error)
            raise
        if isinstance(answer, Answer):
            self._settle(exchange, 200, "ok", len(answer.content))
        return answer

    def find_model(self, name: str, caller: Caller, param: str = "model") -> Model:
        """The model that a caller means, if he may use it; NotFound, which names the field where he said so."""
        model = self.fleet.find(name)
        if model is None or not caller.may_use(name, model.name):
            raise no_model(name, usable(self.fleet, caller), param)
        return model

    def _answer(
        self, exchange: Exchange, headers: Mapping[bytes, bytes]
    ) -> Coroutine[None, None, Answer | StreamAnswer]:
        policy = cache_policy(exchange.request, headers, exchange.model)
        if policy.write:
            exchange.record.cache = "miss"
        if exchange.streams:
            return self._stream(exchange, policy)
        if isinstance(exchange.request, EmbeddingRequest):
            return self._embeddings(exchange, exchange.request, policy)
        return self._plain(exchange, policy)

    async def _plain(self, exchange: Exchange, policy: CachePolicy) -> Answer:
        """A whole answer, out of the cache or new."""
        if policy.write and isinstance(whole := await self._look(exchange, policy), bytes):
            return Answer(whole, headers=[JSON, *exchange.headers()])
        answer = await self._ask(exchange, body_for(exchange.body, exchange.request, exchange.model.name))
        record, usage = exchange.record, usage_of(answer)
        record.prompt_tokens, record.completion_tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0
        if exchange.key and replay.is_sound(answer):
            self._keep(exchange, Entry(answer, False, record.server))
        else:
            self.keep_nothing(exchange)
        return Answer(answer, headers=[JSON, *exchange.headers()])

    async def _look(self, exchange: Exchange, policy: CachePolicy) -> bytes | Reader | None:
        """What is kept, or an equal request brings, as the client wants it; None when this request is to make it, under
        `exchange.key`.
        """
        team, model = exchange.caller.team, exchange.model.name
        key = f"chat:{(await fingerprint(team, model, exchange.door, exchange.body)).hex()}"
        found = await self._find_or_lead(exchange, key) if policy.read else None
        if isinstance(found, Reader):
            return await self._read_along(exchange, found)
        answer = self._played(exchange, found) if found else None
        if found is None or answer is None:
            exchange.key, exchange.record.cache = key, "miss"
            return None
        await self._admit_known(exchange, found.server)
        return answer

    async def _read_along(self, exchange: Exchange, reader: Reader) -> Reader:
        try:
            await self._admit_known(exchange, reader.stream.server.server_id)
        except BaseException:
            reader.close()
            raise
        return reader

    async def _admit_known(self, exchange: Exchange, server: str) -> None:
        """Lets a request in whose answer is known, or on its way: it counts, and takes no place."""
        admission = await self.limiter.admit(exchange.caller, counted=False)
        exchange.admission = exchange.admission or admission  # it may have been given one with a call
        exchange.record.server = server

    async def _find_or_lead(self, exchange: Exchange, key: str) -> Entry | Reader | None:
        """The entry, out of this worker's flights or the cache, or a stream under way; None when this request is to
        make it.
        """
        found = await self._flights.board(key, exchange)
        if isinstance(found, Entry | Reader):
            exchange.record.cache = "coalesced"
            return found
        if found is Role.ALONE:
            return None
        exchange.key, exchange.leads = key, True
        entry = await self._cache.find_or_lead(key)
        if entry is not None:
            exchange.record.cache = "hit"
            self._land(exchange, entry)
        return entry

    async def _embeddings(self, exchange: Exchange, request: EmbeddingRequest, policy: CachePolicy) -> Answer:
        """Each input has its own entry: the servers get only what is new."""
        batch = await EmbeddingBatch.read(
            exchange.caller.team, exchange.model.name, exchange.door, exchange.body, request
        )
        key = f"embed:{batch.digest.hex()}"
        if policy.read:
            entry = await self._flights.board(key, exchange)
            if isinstance(entry, Entry):
                exchange.record.cache = "coalesced"
                await self._admit_known(exchange, entry.server)
                return Answer(entry.body, headers=[JSON, *exchange.headers()])
            exchange.key, exchange.leads = key, True
            batch.found(await self._cache.find_vectors(batch.keys))
            if not batch.complete and await self._cache.lead(key):  # another worker asked for the same until now
                batch.found(await self._cache.find_vectors(batch.keys))
        if batch.complete:
            exchange.record.cache = "hit"
            await self._admit_known(exchange, server="")
            body = batch.answer()
        else:
            body = await self._ask(exchange, batch.body(), batch.merge)
            exchange.record.prompt_tokens = batch.prompt_tokens
            for vector_key, vector in batch.new() if policy.write else ():
                self._cache.keep_vector(vector_key, vector, self.config.cache.embeddings_ttl)
        self._land(exchange, Entry(body, False, exchange.record.server))
        return Answer(body, headers=[JSON, *exchange.headers()])

    def _played(self, exchange: Exchange, entry: Entry) -> bytes | None:
        """An entry as the client wants it; None where it can't be brought into that form, as if it weren't there."""
        try:
            if not exchange.streams:
                return replay.to_plain(entry.body) if entry.streamed else entry.body
            if not entry.streamed:
                return self._events(exchange, entry.body)
            return entry.body if exchange.wants_usage else replay.without_usage(entry.body)
        except replay.UNPLAYABLE:
            return None

    def _events(self, exchange: Exchange, answer: bytes) -> bytes:
        """A whole answer as the stream that it could have been."""
        if not exchange.wants_usage:
            return replay.to_events(answer)
        return replay.to_events(answer, lambda size: estimate(exchange, size // BYTES_PER_TOKEN))

    async def _ask(self, exchange: Exchange, body: bytes, understood: Callable[[bytes], bytes] | None = None) -> bytes:
        """A whole answer from the first server that gives one, which `understood` makes what is wanted."""
        plan = await self._courses.admit(exchange)
        record, path, via = exchange.record, exchange.door.path, exchange.via

        def ask(server: Server, first_byte: float) -> Awaitable[bytes]:
            return self._upstream.ask(server, path, body, record.request_id, via, first_byte, understood)

        answer = await self.attempts.run(plan, exchange, ask)
        record.first_byte_ms = exchange.elapsed_ms
        return answer

    async def _stream(self, exchange: Exchange, policy: CachePolicy) -> Answer | StreamAnswer:
        """A stream that has begun, or one whose headers could not wait for that any longer."""
        opening = asyncio.create_task(self._find_or_open(exchange, policy))
        silence = self.config.timeouts.stream_silence
        try:
            await asyncio.wait((opening,), timeout=silence)
            found = opening.result() if opening.done() else None
        except BaseException:
            give_up(opening)
            raise
        headers = [EVENT_STREAM, (b"cache-control", b"no-cache"), *exchange.headers()]
        if isinstance(found, bytes):
            return Answer(found, headers=headers)
        return StreamAnswer(Relay(self, exchange, opening), headers=headers, silence=silence)

    async def _find_or_open(self, exchange: Exchange, policy: CachePolicy) -> bytes | Stream | Reader:
        """What is kept, or an equal request brings, or else a server's stream up to its first content."""
        if policy.write and (found := await self._look(exchange, policy)):
            return found
        plan = await self._courses.admit(exchange)
        body = body_for(exchange.body, exchange.request, exchange.model.name)
        stream = await self._open(exchange, plan, body)
        return self._share(exchange, stream) if exchange.key else stream

    def _share(self, exchange: Exchange, stream: Stream) -> Reader:
        """A stream that is to be kept, and may be read by others until then."""
        shared = Shared(stream, exchange, self, self._largest_entry)
        reader = shared.join(exchange)
        if exchange.leads:
            self._flights.begin(exchange.key, shared)
        return reader

    async def _open(self, exchange: Exchange, plan: Plan, body: bytes) -> Stream:
        record, timeouts = exchange.record, self.config.timeouts
        choices = exchange.request.choices if not isinstance(exchange.request, EmbeddingRequest) else 1
        pass_usage = exchange.wants_usage and not exchange.key  # of those who share it each is told what it asked for

        async def ask(server: Server, first_byte: float) -> Stream:
            begun = time.monotonic()
            path, via = exchange.door.path, exchange.via
            response = await self._upstream.open(server, path, body, record.request_id, via, first_byte)
            empty_event = DIALECTS[server.kind].empty_event
            chat = exchange.door is CHAT
            parser = Parser(choices=choices, pass_usage=pass_usage, empty_event=empty_event, chat=chat)
            stream = Stream(server, response, parser, idle=timeouts.stream_idle, limit=timeouts.stream)
            try:
                await stream.open(max(0.0, first_byte - (time.monotonic() - begun)))
            except BaseException:
                stream.close()
                raise
            return stream

        stream = await self.attempts.run(plan, exchange, ask)
        record.first_byte_ms = exchange.elapsed_ms
        return stream

    def entry_sent(self, exchange: Exchange, sent: int) -> None:
        """The end of a stream that was answered from the cache after its headers had gone out."""
        self._settle(exchange, 200, "ok", sent)

    def relay_ended(
        self, exchange: Exchange, source: Stream | Reader | None, sent: int, error: CitadelError | None
    ) -> None:
        """The end of one client's stream; `source` is None where none had begun."""
        if source is None:
            self._settle_error(exchange, error or asyncio.CancelledError())
            return
        if isinstance(source, Stream):
            self.stream_over(exchange, source)
            has_all = source.parser.finished
        else:
            has_all = source.is_at_end
        if error:
            self._land(exchange, error)
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
                self.attempts.verdicts.failed(stream.server, stream.failure)
            if exchange.call:
                exchange.call.entry["outcome"] = f"interrupted: {stream.failure}"
            self._land(exchange, Interrupted())
        elif stream.parser.finished:
            self.attempts.verdicts.succeeded(stream.server)
        self.attempts.ended(exchange)
        if events is not None:
            events += untold_usage(exchange, stream.parser) + DONE
            self._keep(exchange, Entry(events, True, stream.server.server_id))
        else:
            self._land(exchange, None)  # nobody read on, or it has landed

    def hand_over(self, exchange: Exchange, heir: Exchange, stream: Stream) -> None:
        """The client of `exchange` has left, and its call goes on as the heir's: each record counts its part."""
        self._count(exchange, stream)
        exchange.hand_over(heir)

    def _count(self, exchange: Exchange, stream: Stream) -> None:
        """Puts on record what has come since the last time."""
        usage = stream.parser.usage or estimated(exchange.body, stream.parser.content_chunks)
        record, counted = exchange.record, stream.counted
        record.prompt_tokens = max(0, (usage.prompt_tokens or 0) - (counted.prompt_tokens or 0))
        record.completion_tokens = max(0, (usage.completion_tokens or 0) - (counted.completion_tokens or 0))
        stream.counted = usage

    def _keep(self, exchange: Exchange, entry: Entry) -> None:
        self._cache.keep(exchange.key, entry, self.config.cache.chat_ttl)
        self._land(exchange, entry)

    def keep_nothing(self, exchange: Exchange) -> None:
        """Lets those who wait for what this request brings go alone, at once: it can't be kept."""
        self._land(exchange, Role.ALONE)

    def _land(self, exchange: Exchange, outcome: Entry | CitadelError | Role | None) -> None:
        """Tells those who follow this request what came of it."""
        if exchange.leads:
            exchange.leads = False
            self._flights.land(exchange.key, outcome)
            self._cache.give_up(exchange.key)

    def free(self, exchange: Exchange) -> None:
        """Gives the request's place back, before its client can know that it has ended and send the next."""
        self.attempts.ended(exchange)
        if exchange.admission:
            self.limiter.release(exchange.admission)
            exchange.admission = None

    def _end(self, exchange: Exchange, error: CitadelError | Failure | TimeoutError) -> CitadelError:
        """Settles what has failed, and gives what the client is told, with the request's way."""
        shown = as_error(error)
        if isinstance(error, NoPlace):
            exchange.queued_ms = (exchange.queued_ms or 0.0) + error.waited_ms
        shown.way = exchange.headers()  # this request's: who follows another gets the same error
        self._settle_error(exchange, error)
        return shown

    def _settle_error(self, exchange: Exchange, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and not self.is_cut:
            self._settle(exchange, 499, "client_disconnected", 0)
            return
        shown = as_error(error)
        if not isinstance(error, Refused):  # its own limit, which its followers need not have reached
            self._land(exchange, shown)
        self._settle(exchange, shown.status_code, shown.code, 0)

    def _settle(self, exchange: Exchange, status: int, outcome: str, sent: int) -> None:
        """The end, once, whatever happened: places freed, outcome recorded and counted. Waits for nothing."""
        if exchange.settled:
            return
        exchange.settled = True
        self._land(exchange, None)
        self.free(exchange)
        if exchange.workload and outcome == "ok":  # answered out of the cache
            self.workloads.give_up(exchange.workload, exchange.caller)
        record, seconds = exchange.record, time.monotonic() - exchange.started
        record.status, record.outcome, record.answer_bytes = status, outcome, sent
        record.total_ms = seconds * 1000
        self.recorder.take(record)
        self.in_flight -= 1
        metrics.request_ended(record, seconds)
