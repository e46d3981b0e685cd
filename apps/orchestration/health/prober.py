"""One prober's living parts: an event loop of its own in a thread, since Celery's tasks have none that lasts.

A task only starts what a tick has to do. So a probe that hangs holds up no task, and Redis and PostgreSQL are
connected to once, not each second.
"""

import asyncio
import threading
from collections.abc import Callable

import structlog

from apps.orchestration import fleet
from apps.orchestration.follow import follow
from apps.orchestration.health.rounds import Rounds
from citadel.database import address, in_thread, make_pool
from citadel.redis import Redis
from citadel.sections import Config, ConfigError

log = structlog.get_logger("citadel.prober")

START_LIMIT = 30.0
STOP_LIMIT = 5.0


class Prober:
    """Starts with its first tick."""

    def __init__(self, config: Config, learn: Callable[[str, bool, int], None]):
        self._config = config
        self._learn = learn
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rounds: Rounds | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None

    def tick(self, every: float) -> int | None:
        """Lets a tick begin; gives its number, None when another has taken it. TimeoutError when that takes too long;
        RedisError.
        """
        self._start()
        if not self._loop or not self._rounds:
            raise TimeoutError("the prober is not ready")
        return asyncio.run_coroutine_threadsafe(self._rounds.tick(every), self._loop).result(START_LIMIT)

    def stop(self) -> None:
        """Ends it, as far as that takes no time."""
        if self._thread and self._loop and self._stop:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_LIMIT)

    def _start(self) -> None:
        with self._lock:
            if not self._thread or not self._thread.is_alive():
                self._ready.clear()
                self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="prober", daemon=True)
                self._thread.start()
        self._ready.wait(START_LIMIT)

    async def _live(self) -> None:
        if not self._config.redis_url:
            raise ConfigError("no Redis: start Citadel with bin/run, or set REDIS_URL=redis://…")
        limit = self._config.timeouts.cache
        redis = Redis(self._config.redis_url, timeout=limit, connect_timeout=limit, name="state")
        pool = make_pool(self._config)
        rounds = Rounds(self._config, redis, pool, self._learn)
        await redis.start()
        await pool.open(wait=False)
        await rounds.start()

        async def reload() -> int:
            rounds.fleet = await in_thread(fleet.load)
            return rounds.fleet.epoch

        following = asyncio.create_task(follow(address(self._config), -1, reload), name="follow")
        self._loop, self._rounds, self._stop = asyncio.get_running_loop(), rounds, asyncio.Event()
        self._ready.set()
        log.info("prober_started")
        await self._stop.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await rounds.stop()
        await redis.stop()
        await pool.close()
