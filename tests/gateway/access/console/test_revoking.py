"""A key that is revoked in the console is refused by each of four workers within a second."""

import asyncio
import secrets
import time

import aiohttp

from apps.gateway.models import Key
from tests.gateway.access.console.test_sessions import open_for
from tests.gateway.access.console.test_teams import page
from tests.gateway.access.console.visitor import Visitor, account
from tests.held_up import HELD_UP
from tests.instance import Instance

CONNECTIONS = 64
"""New ones, which the kernel spreads over the workers: that one of four gets none happens once in 25 million times."""


async def asked(citadel: Instance, key: str) -> set[int]:
    """What so many requests with a key are told, each by another address, so that none is one too many."""

    async def status(session: aiohttp.ClientSession) -> int:
        address = f"10.9.{secrets.randbelow(256)}.{secrets.randbelow(256)}"
        headers = {"authorization": f"Bearer {key}", "x-forwarded-for": address}
        async with session.get("/v1/models", headers=headers) as answer:
            return answer.status

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(citadel.url, connector=connector) as session:
        return set(await asyncio.gather(*(status(session) for _ in range(CONNECTIONS))))


async def test_a_revoked_key_is_refused_by_every_worker_within_a_second(guarded: Instance, visitor: Visitor) -> None:
    with account("admin") as person:
        open_for(visitor, person)
        key = guarded.key()
        chosen = Key.objects.get(key_id=key.split("_")[1])
        guarded.settle()
        assert await asked(guarded, key) == {200}
        revoked = await asyncio.to_thread(
            visitor.send_form, page("key"), action="revoke", _selected_action=str(chosen.pk)
        )
        assert revoked.status_code == 302
        begun = time.monotonic()
        while (told := await asked(guarded, key)) != {401}:
            assert time.monotonic() - begun < 1 + HELD_UP, told
            await asyncio.sleep(0.1)
