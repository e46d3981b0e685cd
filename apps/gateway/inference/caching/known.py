"""What need not be asked for: answers that are kept, and those that equal requests bring in this moment."""

from collections.abc import Sequence

from apps.gateway.inference.caching import replay
from apps.gateway.inference.caching.cache import Entry, ResponseCache
from apps.gateway.inference.caching.coalesce import Flights, Role
from apps.gateway.inference.caching.embeddings import EmbeddingBatch
from apps.gateway.inference.claiming import Claiming
from apps.gateway.inference.doors import CachePolicy, fingerprint
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.streams.shared import Reader, Shared
from apps.gateway.inference.usage import BYTES_PER_TOKEN, estimate
from apps.gateway.limits.budgets import Claim
from apps.gateway.limits.limiter import Limiter
from citadel.errors import CitadelError
from citadel.sections import Config

UNPAYABLE = frozenset(("budget_exceeded", "budget_unavailable"))
"""What a request is told for which nothing can be claimed."""


class KnownAnswers:
    """The cache, and this worker's flights. Who gets nothing here under `exchange.key` is to make it, and to say what
    came of it: `keep`, `keep_nothing` or `land`.
    """

    def __init__(self, cache: ResponseCache, limiter: Limiter, claiming: Claiming, config: Config):
        self._cache = cache
        self._limiter = limiter
        self._claiming = claiming
        self._config = config
        self._flights = Flights()

    async def look(self, exchange: Exchange, policy: CachePolicy) -> bytes | Reader | None:
        """What is kept, or an equal request brings, as the client wants it; None when this request is to make it, under
        `exchange.key`.
        """
        team, model = exchange.caller.team, exchange.model.name
        key = f"chat:{(await fingerprint(team, model, exchange.door, exchange.body)).hex()}"
        if policy.read:
            await self._use_up_nonce(exchange)
        found = await self._find_or_lead(exchange, key) if policy.read else None
        if isinstance(found, Reader):
            return await self._read_along(exchange, found)
        answer = self._played(exchange, found) if found else None
        if found is None or answer is None:
            exchange.key, exchange.record.cache = key, "miss"
            return None
        await self._admit(exchange, found.server)
        return answer

    async def fill(self, exchange: Exchange, batch: EmbeddingBatch, policy: CachePolicy) -> bytes | None:
        """Puts the vectors that are kept into a batch, each input of which has its own entry. The answer, where that
        was all or an equal request has brought it.
        """
        key = f"embed:{batch.digest.hex()}"
        if policy.read:
            await self._use_up_nonce(exchange)
            entry = await self._flights.board(key, exchange)
            if isinstance(entry, Entry):
                exchange.record.cache = "coalesced"
                await self._admit(exchange, entry.server)
                return entry.body
            exchange.key, exchange.leads = key, True
            batch.found(await self._cache.find_vectors(batch.keys))
            if not batch.complete and await self._cache.lead(key):  # another worker asked for the same until now
                batch.found(await self._cache.find_vectors(batch.keys))
        if not batch.complete:
            return None
        exchange.record.cache = "hit"
        await self._admit(exchange, server="")
        body = batch.answer()
        self.land(exchange, Entry(body, False, exchange.record.server))
        return body

    def begin(self, exchange: Exchange, shared: Shared) -> None:
        """The stream of a request has begun: those who wait for it may read along."""
        if exchange.leads:
            self._flights.begin(exchange.key, shared)

    def keep(self, exchange: Exchange, entry: Entry) -> None:
        """Keeps an answer, which those who wait for it get too."""
        self._cache.keep(exchange.key, entry, self._config.cache.chat_ttl)
        self.land(exchange, entry)

    def keep_vectors(self, exchange: Exchange, batch: EmbeddingBatch, answer: bytes, policy: CachePolicy) -> None:
        """Keeps what a server has made of a batch."""
        for key, vector in batch.new() if policy.write else ():
            self._cache.keep_vector(key, vector, self._config.cache.embeddings_ttl)
        self.land(exchange, Entry(answer, False, exchange.record.server))

    def keep_nothing(self, exchange: Exchange) -> None:
        """Lets those who wait for what this request brings go alone, at once: it can't be kept."""
        self.land(exchange, Role.ALONE)

    def land(self, exchange: Exchange, outcome: Entry | CitadelError | Role | None) -> None:
        """Tells those who follow this request what came of it."""
        if exchange.leads:
            exchange.leads = False
            self._flights.land(exchange.key, outcome)
            self._cache.give_up(exchange.key)

    async def _use_up_nonce(self, exchange: Exchange) -> None:
        """Of a signed request that may be answered without being let in to a server, or bring others what it gets."""
        if exchange.nonce:
            await exchange.nonce.use_up(self._limiter.redis)
            exchange.nonce = None

    async def _read_along(self, exchange: Exchange, reader: Reader) -> Reader:
        server, claims = reader.stream.server.server_id, self._claiming.claims_beside(exchange, reader.shared.owner)
        try:
            try:
                await self._admit(exchange, server, claims)
            except CitadelError as error:
                if not claims or error.code not in UNPAYABLE:
                    raise
                await self._admit(exchange, server)  # what others have paid it may read; with the rest it can't go on
        except BaseException:
            reader.close()
            raise
        return reader

    async def _admit(self, exchange: Exchange, server: str, claims: Sequence[Claim] = ()) -> None:
        """Lets a request in whose answer is known, or on its way: it counts, and takes no place."""
        admission = await self._limiter.admit(exchange.caller, exchange.model, claims=claims, counted=False)
        if exchange.admission:  # it is counted, with a call that it has taken over
            exchange.admission = exchange.admission._replace(left=admission.left)
        else:
            exchange.admission = admission
        if claims:
            exchange.reserved = exchange.reserved.also(admission.question)
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
            self.land(exchange, entry)
        return entry

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
