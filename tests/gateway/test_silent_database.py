"""PostgreSQL takes connections and says nothing, as behind a network that drops packets: who needs it not goes on."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.gateway.client import EMBEDDINGS
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import running

WAITING = 40
"""More than a worker had threads on any machine."""
LARGE = 256 * 1024


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """One whose database a test may silence."""
    with (
        running(tmp_path_factory.mktemp("silent"), {"CITADEL_DEMO_FLEET": "0"}) as citadel,
        Elsewhere.on(citadel) as own,
    ):
        yield own


async def test_long_answers_are_compressed_meanwhile(own: Elsewhere) -> None:
    async with own.asking() as client, own.asking(own.citadel.admin_key) as admin:
        body = {"model": own.model, "input": [f"text {number}" for number in range(100)]}
        plain = await client.post(body, EMBEDDINGS, accept_encoding="identity")
        assert len(plain.body) >= LARGE
        with own.silent_database():
            waiting = [asyncio.create_task(admin.get("/api/v1/teams")) for _ in range(WAITING)]
            await asyncio.sleep(1)
            begun = time.monotonic()
            packed = await client.post(body, EMBEDDINGS, accept_encoding="gzip")
            seconds = time.monotonic() - begun
            assert not any(task.done() for task in waiting)
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.json()["data"] == plain.json()["data"]
        assert seconds < 1 + HELD_UP
        assert {reply.status for reply in await asyncio.gather(*waiting)} <= {200, 503}
