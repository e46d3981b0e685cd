"""The story of one inference request, the same for every door:

read → look in the cache → plan → admit → attempt → relay → settle. Who asks is known before (`access/`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping

from apps.audit.record import Entry as Record
from apps.audit.record import Recorder
from apps.gateway.access.signatures.nonce import Nonce
from apps.gateway.inference.caching import replay
from apps.gateway.inference.caching.cache import Entry, ResponseCache
from apps.gateway.inference.caching.embeddings import EmbeddingBatch
from apps.gateway.inference.caching.known import KnownAnswers
from apps.gateway.inference.calls.attempts import Attempts
from apps.gateway.inference.claiming import Claiming
from apps.gateway.inference.course import Courses
from apps.gateway.inference.doors import CHAT, LARGE, CachePolicy, Door, body_for, cache_policy
from apps.gateway.inference.exchange import Exchange, priority_of
from apps.gateway.inference.http.failures import Failure
from apps.gateway.inference.http.upstream import Upstream
from apps.gateway.inference.metering import Meter
from apps.gateway.inference.names import no_model
from apps.gateway.inference.needs import needs_of
from apps.gateway.inference.settlement import Settlement
from apps.gateway.inference.streams.relay import Relay, give_up
from apps.gateway.inference.streams.shared import Reader, Shared
from apps.gateway.inference.streams.sse import Parser
from apps.gateway.inference.streams.stream import Stream
from apps.gateway.inference.usage import usage_of
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.prices import Prices
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
        prices: Prices,
        cache: ResponseCache,
        upstream: Upstream,
        recorder: Recorder,
        standings: Standings,
        watch: Watch,
    ):
        self.fleet: Fleet = EMPTY
        self.config = config
        self.recorder = recorder
        self.limiter = limiter
        self.standings = standings
        standings.on_move = limiter.look_again_soon
        self._largest_entry = config.cache.max_entry_kb * 1024
        self._upstream = upstream
        self.router = Router(standings, watch, config.routing, config.server.workers)
        claiming = Claiming(self.router, prices, config.limits.usual_answer)
        self.known = KnownAnswers(cache, limiter, claiming, config)
        workers, deadline = config.server.workers, config.timeouts.client
        self.attempts = Attempts(self.router, standings, watch, limiter, config.routing, workers, deadline)
        self.workloads = Workloads(limiter, self.router, standings, config.routing)
        self._meter = Meter(limiter, prices, claiming, self.attempts)
        self.settlement = Settlement(
            limiter, claiming, self.attempts, self._meter, self.workloads, recorder, self.known
        )
        self._courses = Courses(self.router, limiter, claiming, self.attempts, self.workloads)
        self._deadlines = Deadlines(config.timeouts.client)

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        moved = {now.server_id for was, now in relocated(self.fleet, fleet) if was.url != now.url}
        the_same = frozenset(fleet.servers.keys() - moved)
        self.fleet = fleet
        self.standings.forget_all_but(the_same)
        self.router.follow(fleet)
        self.router.paces.forget_all_but(lambda _model: the_same)
        self.attempts.follow(fleet)
        self.workloads.follow(fleet)
        self.limiter.look_again_soon()

    async def answer(
        self,
        door: Door,
        caller: Caller,
        body: bytes,
        headers: Mapping[bytes, bytes],
        request_id: str,
        nonce: Nonce | None = None,
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
        exchange.nonce = nonce
        exchange.priority = priority_of(headers, caller)
        exchange.workload = headers.get(b"x-citadel-workload", b"")
        exchange.needs = needs_of(door, request, model, headers, self.router.strategy_of(model))
        self.settlement.begun()
        try:
            if exchange.streams:  # which has time limits of its own
                answer = await self._answer(exchange, headers)
            else:
                with self._deadlines:
                    answer = await self._answer(exchange, headers)
        except (CitadelError, Failure, TimeoutError) as error:
            raise self.settlement.failed(exchange, error) from None
        except BaseException as error:
            self.settlement.broken_off(exchange, error)
            raise
        if isinstance(answer, Answer):
            self.settlement.answered(exchange, len(answer.content))
        return answer

    def find_model(self, name: str, caller: Caller, param: str = "model") -> Model:
        """The model that a caller means, if he may use it; NotFound, which names the field where he said so."""
        model = self.fleet.find(name)
        if model is None or not caller.may_use(name, model.name):
            raise no_model(name, self.fleet, param, caller)
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
        if policy.write and isinstance(whole := await self.known.look(exchange, policy), bytes):
            return Answer(whole, headers=[JSON, *exchange.headers()])
        answer = await self._ask(exchange, body_for(exchange.body, exchange.request, exchange.model.name))
        record, usage = exchange.record, usage_of(exchange, answer)
        record.prompt_tokens += usage.prompt_tokens or 0  # beside those of a call that it had gone on with
        record.completion_tokens += usage.completion_tokens or 0
        if exchange.key and replay.is_sound(answer):
            self.known.keep(exchange, Entry(answer, False, record.server))
        else:
            self.known.keep_nothing(exchange)
        return Answer(answer, headers=[JSON, *exchange.headers()])

    async def _embeddings(self, exchange: Exchange, request: EmbeddingRequest, policy: CachePolicy) -> Answer:
        """The servers get only what is new."""
        batch = await EmbeddingBatch.read(
            exchange.caller.team, exchange.model.name, exchange.door, exchange.body, request
        )
        body = await self.known.fill(exchange, batch, policy)
        if body is None:
            body = await self._ask(exchange, batch.body(), batch.merge)
            exchange.record.prompt_tokens += batch.prompt_tokens
            self.known.keep_vectors(exchange, batch, body, policy)
        return Answer(body, headers=[JSON, *exchange.headers()])

    async def _ask(self, exchange: Exchange, body: bytes, understood: Callable[[bytes], bytes] | None = None) -> bytes:
        """A whole answer from the first server that gives one, which `understood` makes what is wanted."""
        plan = await self._courses.admit(exchange)
        record, path, via = exchange.record, exchange.door.path, exchange.via

        def ask(server: Server, first_byte: float) -> Awaitable[bytes]:
            return self._upstream.ask(
                server, path, body, record.request_id, via, first_byte, understood, exchange.answer_comes
            )

        answer = await self._meter.run(exchange, self.attempts.run(plan, exchange, ask))
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
            del opening  # its error holds this frame, which would hold it, and the request, until the collector comes
            raise
        headers = [EVENT_STREAM, *exchange.headers()]
        if isinstance(found, bytes):
            return Answer(found, headers=headers)
        return StreamAnswer(Relay(self.settlement, exchange, opening), headers=headers, silence=silence)

    async def _find_or_open(self, exchange: Exchange, policy: CachePolicy) -> bytes | Stream | Reader:
        """What is kept, or an equal request brings, or else a server's stream up to its first content."""
        if policy.write and (found := await self.known.look(exchange, policy)):
            return found
        plan = await self._courses.admit(exchange)
        body = body_for(exchange.body, exchange.request, exchange.model.name)
        stream = await self._open(exchange, plan, body)
        if exchange.key:
            return self._share(exchange, stream)
        exchange.source = stream
        return stream

    def _share(self, exchange: Exchange, stream: Stream) -> Reader:
        """A stream that is to be kept, and may be read by others until then."""
        shared = Shared(stream, exchange, self.settlement, self._largest_entry)
        reader = shared.join(exchange)
        self.known.begin(exchange, shared)
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

        stream = await self._meter.run(exchange, self.attempts.run(plan, exchange, ask))
        record.first_byte_ms = exchange.elapsed_ms
        return stream
