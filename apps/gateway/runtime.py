"""One worker's living parts: made, started and stopped in one place."""

import asyncio
from functools import partial

import structlog
from asgiref.sync import sync_to_async

from apps.audit.record import Recorder
from apps.gateway import metrics
from apps.gateway.access.certificates.presented import Certificates
from apps.gateway.access.keys.table import KeyTable
from apps.gateway.access.keys.uses import KeyUses
from apps.gateway.access.signatures.verifier import Signatures
from apps.gateway.access.tokens.revoked import RevokedTokens
from apps.gateway.access.tokens.verifier import Verifier
from apps.gateway.inference.caching import clearings
from apps.gateway.inference.caching.cache import ResponseCache
from apps.gateway.inference.http.upstream import Upstream
from apps.gateway.inference.pipeline import Pipeline
from apps.gateway.limits.floods import Floods
from apps.gateway.limits.ledger import Ledger
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.prices import Prices
from apps.gateway.limits.workers import Workers
from apps.orchestration import fleet
from apps.orchestration.follow import follow
from apps.orchestration.health.board import Board
from apps.orchestration.health.hearing import Hearing
from apps.orchestration.health.loads import load_lasts
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.watch import Watch
from citadel import hop
from citadel.client_address import Proxies
from citadel.database import address, make_pool
from citadel.redis import Redis
from citadel.sections import Config, ConfigError

log = structlog.get_logger("citadel.runtime")

CACHE_DATABASE = 1
"""Of the cache instance: responses; 0 is for general entries."""
EAR_TIMEOUT = 5.0
"""Seconds for which Redis may keep a worker waiting that asks for places: longer than it is asked to (waiting.py)."""
SHUTDOWN = 10.0
COUNT_EVERY = 0.5


class Runtime:
    """Everything that a web worker keeps between requests."""

    def __init__(self, config: Config):
        if not config.redis_url:
            raise ConfigError("no Redis: start Citadel with bin/run, or set REDIS_URL=redis://…")
        self.config = config
        self.ready = False
        self.draining = False
        """Whether this worker is to end: it answers what has reached it, and should get nothing more."""
        redis = partial(Redis, timeout=config.timeouts.cache_request, connect_timeout=config.timeouts.cache)
        self._state = redis(config.redis_url, name="state")
        cache_url = config.redis_cache_url or config.redis_url
        self._cache_redis = redis(cache_url, name="cache", database=CACHE_DATABASE)
        self.board = Board(self._state, load_lasts(config.health))
        self.pool = make_pool(config)
        self._recorder = Recorder(self.pool)
        self._ear = Redis(config.redis_url, timeout=EAR_TIMEOUT, connect_timeout=config.timeouts.cache, name="waiting")
        workers = Workers(config.server.workers)
        self._ledger = Ledger(self.pool, self._state, workers)
        self._limiter = Limiter(self._state, self._ear, self._ledger, config.limits, workers)
        self._prices = Prices(self.pool)
        self.floods = Floods(self._state, config.limits.others_per_minute, workers)
        self._cache = ResponseCache(self._cache_redis, largest=config.cache.max_entry_kb * 1024)
        self._upstream = Upstream(config, hop.mark(config.secret))
        self.proxies = Proxies(config.server.trusted_proxies)
        self.keys = KeyTable(config.secret, config.limits.client, self.pool)
        self.key_uses = KeyUses(self.pool)
        self.signatures = Signatures(config, self.keys, self._state)
        self.certificates = Certificates(config, self.keys, self.proxies)
        self.standings = Standings(
            eject_after=config.routing.eject_after,
            max_backoff=config.routing.max_backoff,
            trial_limit=config.routing.first_byte_timeout,
        )
        """How the servers are, as this worker's traffic and the board tell."""
        self.watch = Watch(self.board, self.standings, self.pool, config.routing.max_backoff)
        self.tokens = Verifier(config, self.keys, self._state, RevokedTokens(self.pool), self.watch.clock)
        self._hearing = Hearing(self._state, config.health.heartbeat_interval)
        self.pipeline = Pipeline(
            config,
            self._limiter,
            self._prices,
            self._cache,
            self._upstream,
            self._recorder,
            self.standings,
            self.watch,
        )
        self.database_available = False
        """Whether PostgreSQL has answered when it was last asked for news, as it is each second."""
        self._follower: asyncio.Task[None] | None = None
        self._counter: asyncio.Task[None] | None = None
        self._teller: asyncio.Task[None] | None = None
        self._accountant: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects, loads the snapshot and the keys, and keeps them in step from then on."""
        await self.pool.open(wait=True, timeout=self.config.timeouts.database)
        await self._state.start()
        await self._ear.start()
        await self._cache_redis.start()
        await self._upstream.start()
        self._limiter.start()
        self._cache.start()
        self._recorder.start()
        metrics.forget_dead_workers()
        epoch = await self._reload()
        await self.tokens.revoked.load()
        await self.watch.start()
        self.pipeline.workloads.start()
        self.database_available = True
        look = self.tokens.revoked.look
        following = follow(address(self.config), epoch, self._reload, self._reached_database, look)
        self._follower = asyncio.create_task(following, name="follow")
        self._counter = asyncio.create_task(self._count(), name="metrics")
        self._teller = asyncio.create_task(self.key_uses.tell_on(), name="key uses")
        self._accountant = asyncio.create_task(self._ledger.keep_on(), name="budgets")
        self._hearing.start()
        self.ready = True

    def drain(self) -> None:
        """The worker's end begins."""
        self.draining = True
        self._hearing.stop()

    def cut(self) -> None:
        """Who still runs has had its time and is cancelled now."""
        self.pipeline.settlement.is_cut = True

    def connected(self, count: int, refused: int) -> None:
        """So many connections are open, and so many were too many since this was last told."""
        metrics.connected(count, refused)

    async def stop(self) -> None:
        """Writes what is still to be written and closes everything."""
        self.ready = False
        self._hearing.stop()
        for task in (self._follower, self._counter, self._teller, self._accountant):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.key_uses.tell()
        await self.tokens.revoked.stop()
        await self.pipeline.workloads.stop()
        await self.watch.stop()
        await self._cache.stop()
        await self._upstream.stop()
        await self._recorder.stop(SHUTDOWN)
        await self._limiter.stop()
        await self._ear.stop()
        await self._state.stop()
        await self._cache_redis.stop()
        await self.pool.close()
        self.count()

    def count(self) -> None:
        """Brings this worker's metrics up to date."""
        metrics.flush(in_flight=self.pipeline.settlement.in_flight, unshipped=self._recorder.pending)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_EVERY)
            self.count()

    @property
    def fleet(self) -> fleet.Fleet:
        """The snapshot in force."""
        return self.pipeline.fleet

    @property
    def pending_records(self) -> int:
        """Audit records that are not in the database yet."""
        return self._recorder.pending

    @property
    def redis_available(self) -> bool:
        """Whether the state instance answers."""
        return self._state.available

    def _reached_database(self, answers: bool) -> None:
        self.database_available = answers

    async def _reload(self) -> int:
        """Reads what has changed; gives the epoch that was read."""
        snapshot = await sync_to_async(fleet.load, thread_sensitive=True)()
        await self.keys.load()
        await self._prices.load()
        await clearings.load(self.pool)
        await self.watch.relocate(fleet.relocated(self.fleet, snapshot))
        self.pipeline.follow(snapshot)
        log.info("configuration_loaded", epoch=snapshot.epoch, models=len(snapshot.models))
        return snapshot.epoch
