"""Two real servers hold a model under 20 requests a second, and one of them is in trouble; the usual settings."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx
import pytest

from tests.gateway.elsewhere import Elsewhere
from tests.gateway.fleet.conftest import WORKERS, Asker, Four, Registered, Reply
from tests.held_up import HELD_UP
from tests.instance import Instance, free_port, running
from tests.orchestration.health.watchers import told

pytestmark = [pytest.mark.faults, pytest.mark.alone]

MODEL = "smollm2:135m"
RATE = 20
USUAL = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_SERVER__WORKERS": str(WORKERS),
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0",
    "CITADEL_HEALTH__INTERVAL": "30",
    "CITADEL_HEALTH__FAST_INTERVAL": "2",
    "CITADEL_HEALTH__CONNECT_INTERVAL": "5",
}
IN_ORDER = ["health_status_changed", "failover_initiated", "failover_completed", "cluster_rebalanced"]
BACK = ["health_status_changed", "cluster_rebalanced"]
FOUND_WITHIN = 15.0 + HELD_UP
FLOOR = 5.0
BACK_WITHIN = 75.0
"""Five probes, and the longest pause between two trials."""
PROBED_WITHIN = 60.0
SLOW_START = 30.0
STEP = 5.0
"""Seconds of which the share is looked at."""


@dataclass
class Real:
    """A real server: SmolLM2 behind llama.cpp, as `bin/run` starts it."""

    server_id: str
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        command = [sys.executable, "-m", "citadel.embedded.chat_server", "--port", str(self.port), "--parallel", "8"]
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 30
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=2).status_code == 200:
                    return
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def send(self, number: signal.Signals) -> None:
        assert self.process
        os.kill(self.process.pid, number)

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@contextmanager
def real(four: Four, *server_ids: str) -> Iterator[list[Real]]:
    """Real servers under these ids, registered as they do it themselves."""
    servers = [Real(server_id, free_port()) for server_id in server_ids]
    try:
        for server in servers:
            server.start()
            four.register(server, MODEL)
        yield servers
    finally:
        for server in servers:
            server.end()
            four.elsewhere.command("server", "remove", server.server_id)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with running(tmp_path_factory.mktemp("real"), USUAL) as citadel, Elsewhere.on(citadel) as elsewhere:
        yield elsewhere


@pytest.fixture
def four(own: Elsewhere) -> Iterator[Four]:
    four = Four(own.citadel, own)
    with four.stack:
        yield four


class Load:
    """A steady rate of requests for as long as the test looks on."""

    def __init__(self, client: Asker, model: str) -> None:
        self.replies: list[Reply] = []
        self._client = client
        self._model = model
        self._ended = asyncio.Event()
        self._running = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        begun, number, tasks = time.monotonic(), 0, []
        while not self._ended.is_set():
            await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))
            tasks.append(asyncio.create_task(self._ask(number)))
            number += 1
        await asyncio.gather(*tasks)

    async def _ask(self, number: int) -> None:
        body = {"model": self._model, "prompt": f"{number}", "max_tokens": 1}  # what takes a small machine least
        self.replies.append(await self._client.post("/v1/completions", body))

    async def end(self) -> list[Reply]:
        self._ended.set()
        await self._running
        return sorted(self.replies, key=lambda reply: reply.begun)


def kinds(citadel: Instance, server_id: str) -> list[str]:
    return [kind for kind, _, _ in told(citadel, server_id) if kind in IN_ORDER]


async def until(holds: Callable[[], bool], deadline: float, describe: Callable[[], object]) -> None:
    while not holds():
        assert time.monotonic() < deadline, describe()
        await asyncio.sleep(0.1)


def shares(replies: Sequence[Reply], server_id: str, since: float) -> list[float]:
    """The server's share of the answers in each `STEP` from then on; the last, which is not whole, is left out."""
    steps: dict[int, Counter[bool]] = {}
    for reply in replies:
        if reply.begun >= since:
            steps.setdefault(int((reply.begun - since) / STEP), Counter())[reply.server == server_id] += 1
    return [counter[True] / counter.total() for _, counter in sorted(steps.items())][:-1]


def patience(replies: Sequence[Reply], server_id: str) -> float:
    """Seconds that a server may take longer for its first byte than where nothing slows it: four times its p99.

    Each worker has seen some dozens of its answers, of which the slowest is the p99, in steps of a quarter.
    """
    slowest = max(reply.seconds for reply in replies if reply.server == server_id)
    return max(0.0, 1.25 * 4 * slowest - FLOOR)


async def falls_out(four: Four, server: Registered, died: float, within: float = FOUND_WITHIN) -> None:
    """The list and the events say so in time and in order."""
    citadel, server_id = four.citadel, server.server_id

    def describe() -> object:
        return kinds(citadel, server_id), four.listed(server)

    await until(lambda: kinds(citadel, server_id)[-4:] == IN_ORDER, died + within, describe)
    assert four.listed(server)["health_status"] == "unhealthy"


async def comes_back(four: Four, server: Registered, returned: float) -> None:
    """Not before five good probes, and then by itself."""
    citadel, server_id = four.citadel, server.server_id
    seen: list[tuple[str, int]] = []

    def is_back() -> bool:
        said = four.listed(server)
        seen.append((said["health_status"], said["consecutive_successes"]))
        return said["health_status"] == "healthy"

    await until(is_back, returned + BACK_WITHIN, lambda: seen[-1:])
    assert max(successes for status, successes in seen if status == "unhealthy") >= 1
    assert seen[-1][1] >= 5
    await until(
        lambda: kinds(citadel, server_id)[-2:] == BACK,
        time.monotonic() + 5 + HELD_UP,
        lambda: kinds(citadel, server_id),
    )


def check_rising(replies: Sequence[Reply], server_id: str, returned: float) -> None:
    """Its weight grows from little to the whole, in no great step.

    Weights are seen by the shares of the two servers; the other's may be small itself where the machine has been slow.
    """
    [first, *_] = [reply.begun for reply in replies if reply.begun > returned and reply.server == server_id]
    seen = shares(replies, server_id, first)
    odds = [share / max(1 - share, 0.01) for share in seen]
    whole = sum(odds[-2:]) / 2
    weights = [one / whole for one in odds]
    assert seen[-1] > 0.25, seen
    assert weights[0] < 0.4, weights
    assert max(later - earlier for earlier, later in itertools.pairwise(weights)) < 0.5, weights


def check_none_failed(citadel: Instance, replies: Sequence[Reply], died: float) -> None:
    failed = [reply for reply in replies if reply.status != 200]
    story = [
        (round(reply.begun - died, 1), reply.status, citadel.records(reply.headers["x-request-id"])[0]["attempts"])
        for reply in failed
    ]
    assert not failed, f"{len(failed)} of {len(replies)}, with the seconds since the trouble began: {story}"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_dies_and_nobody_notices(four: Four, how: signal.Signals) -> None:
    with real(four, f"dies-{how.name}", f"lives-{how.name}") as (dies, lives):
        async with four.asking() as client:
            load = Load(client, MODEL)
            await asyncio.sleep(15)
            died = time.monotonic()
            dies.send(how)
            more = patience(load.replies, dies.server_id) if how is signal.SIGSTOP else 0.0
            await falls_out(four, dies, died, FOUND_WITHIN + more)
            if how is signal.SIGSTOP:
                # Its kernel takes connections, so the probes need longer than the traffic to be sure of it.
                await until(lambda: four.listed(dies)["consecutive_failures"] >= 3, died + PROBED_WITHIN, lambda: died)
                dies.send(signal.SIGCONT)
            else:
                await asyncio.to_thread(dies.start)
            returned = time.monotonic()
            await comes_back(four, dies, returned)
            await asyncio.sleep(SLOW_START + 2 * STEP)
            replies = await load.end()
        check_none_failed(four.citadel, replies, died)
        before = [reply for reply in replies if reply.begun < died - 1]
        assert {reply.server for reply in before} == {dies.server_id, lives.server_id}
        # A trial that waits when the server goes on is answered by it.
        gone = [reply for reply in replies if reply.begun > died + FOUND_WITHIN + more]
        out = [reply for reply in gone if reply.begun + reply.seconds < returned]
        assert {reply.server for reply in out} <= {lives.server_id}
        check_rising(replies, dies.server_id, returned)


async def test_one_hangs_while_its_health_page_answers(four: Four, model: str) -> None:
    hung, well = four.server(model), four.server(model)
    async with four.asking() as client:
        load = Load(client, model)
        await asyncio.sleep(10)
        assert kinds(four.citadel, hung.server_id) == []
        died = time.monotonic()
        hung.behave("hang")
        await falls_out(four, hung, died)
        [reason] = [data["source"] for kind, _, data in told(four.citadel, hung.server_id) if kind == IN_ORDER[0]]
        assert reason == "traffic"
        await asyncio.sleep(15)
        assert four.listed(hung)["health_status"] == "unhealthy", "its health page says 200 all the time"
        hung.behave()
        returned = time.monotonic()
        await until(
            lambda: kinds(four.citadel, hung.server_id)[-2:] == BACK, returned + BACK_WITHIN, lambda: "not back"
        )
        assert four.listed(hung)["health_status"] == "healthy"
        await asyncio.sleep(SLOW_START + 2 * STEP)
        replies = await load.end()
    check_none_failed(four.citadel, replies, died)
    assert {reply.server for reply in replies} == {hung.server_id, well.server_id}
    check_rising(replies, hung.server_id, returned)
