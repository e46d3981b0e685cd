"""Row 22: five times the load that the servers can do."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.gateway.elsewhere import Elsewhere
from tests.gateway.fleet.conftest import WORKERS, Asker, Four, Reply, left_as_it_was, most_at_once
from tests.held_up import HELD_UP
from tests.instance import QUIET, running

PLACES = 4
HOLD_MS = 200
AT_ONCE = 0.1 + HELD_UP
"""Seconds in which who finds no room is told so."""
WARM_UP = 1.0
"""Seconds after which an overload is in full swing."""


async def most(client: Asker, model: str, seconds: float) -> float:
    """Answers a second that the servers give when there is always somebody who waits, and nobody too many."""
    ends = time.monotonic() + seconds

    async def go_on() -> int:
        answered = 0
        while time.monotonic() < ends:
            assert (await client.chat(model)).status == 200
            answered += 1
        return answered

    return sum(await asyncio.gather(*(go_on() for _ in range(3 * PLACES)))) / seconds


async def flood(client: Asker, model: str, rate: float, seconds: float, mix: Sequence[str]) -> dict[str, list[Reply]]:
    """So many requests a second, whose priorities are those of `mix` in turn."""
    replies: dict[str, list[Reply]] = {priority: [] for priority in mix}

    async def ask(priority: str) -> None:
        replies[priority].append(await client.chat(model, headers={"x-citadel-priority": priority}))

    begun, tasks = time.monotonic(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(ask(mix[number % len(mix)])))
    await asyncio.gather(*tasks)
    return replies


async def _overload(four: Four, model: str, seconds: float, *, least: float) -> None:
    """`least` is the share of what the servers can do that they must do, which other programs on the machine lessen."""
    servers = [four.server(model, max_concurrent=PLACES, behave=[f"slow_start {HOLD_MS}"]) for _ in range(2)]
    mix = ["low", "normal", "low", "normal", "critical", "normal", "low", "normal", "low", "low"]
    async with four.asking() as client:
        peak = await most(client, model, 3)
        for server in servers:
            server.clear()
        begun = time.monotonic()
        replies = await flood(client, model, 5 * peak, seconds, mix)
    everybody = [reply for some in replies.values() for reply in some]
    answered = [reply for reply in everybody if reply.status == 200]
    refused = [reply for reply in everybody if reply.status != 200]
    ends = [reply.begun + reply.seconds - begun for reply in answered]
    rate = sum(WARM_UP < end <= seconds for end in ends) / (seconds - WARM_UP)
    assert rate >= least * peak, f"{rate:.1f} a second of {peak:.1f}"
    assert {(reply.status, reply.code) for reply in refused} <= {(503, "queue_full"), (503, "queue_too_long")}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    took = sorted(reply.seconds for reply in refused)  # some had waited, until a higher priority put them out
    assert took[int(0.95 * len(took))] <= AT_ONCE, f"{took[len(took) // 2]:.3f}, {took[-1]:.3f}"
    assert max(most_at_once(server) for server in servers) <= PLACES
    shares = {priority: Counter(reply.status for reply in some)[200] / len(some) for priority, some in replies.items()}
    assert shares["critical"] > 0.97, shares
    assert shares["normal"] > 3 * shares["low"], shares


async def test_under_five_times_the_load_the_servers_do_what_they_can(four: Four, model: str) -> None:
    await _overload(four, model, 5, least=0.4)


@pytest.mark.faults
@pytest.mark.alone
async def test_and_go_on_so(four: Four, model: str) -> None:
    await _overload(four, model, 30, least=0.9)


@pytest.fixture
def as_it_comes(tmp_path: Path) -> Iterator[Four]:
    """Four workers and the default settings, but for the limit of all clients together, which is far below the load."""
    unlimited = {"CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0"}
    settings = {"CITADEL_DEMO_FLEET": "0", "CITADEL_SERVER__WORKERS": str(WORKERS), **unlimited}
    probes = dict(zip(QUIET, ("30", "2", "5"), strict=True))
    with running(tmp_path / "home", settings | probes) as citadel, Elsewhere.on(citadel) as elsewhere:
        four = Four(citadel, elsewhere)
        with left_as_it_was(four), four.stack:
            yield four


@pytest.mark.faults
@pytest.mark.alone
async def test_they_do_at_default_settings_too(as_it_comes: Four, model: str) -> None:
    await _overload(as_it_comes, model, 30, least=0.9)
