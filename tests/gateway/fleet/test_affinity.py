"""Affinity over four workers: the turns of a conversation meet the same server, whatever worker each meets."""

import asyncio
import random
from collections import Counter

import pytest

from tests.gateway.fleet.conftest import Asker, Four

CONVERSATIONS, TURNS = 60, 10


async def converse(client: Asker, model: str, number: int, pause: float) -> list[str]:
    """The servers that a conversation's turns meet."""
    chance = random.Random(number)
    messages = [{"role": "user", "content": f"This is conversation {number} of {model}."}]
    met = []
    for _ in range(TURNS):
        await asyncio.sleep(pause * chance.uniform(0.5, 1.5))
        reply = await client.chat(model, messages=messages)
        assert reply.status == 200
        met.append(reply.server)
        said = reply.json()["choices"][0]["message"]["content"]
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    return met


@pytest.mark.parametrize(("servers", "pause"), [(3, 0.6), (3, 0.0), (4, 0.0)])
async def test_turns_of_a_conversation_meet_the_same_server_and_nobody_gets_too_much(
    four: Four, model: str, servers: int, pause: float
) -> None:
    """All begin at the same time; with pauses between their turns, and back to back."""
    for _ in range(servers):
        four.server(model)
    four.make_class(model, strategy="affinity")
    async with four.asking() as client:
        met = await asyncio.gather(*(converse(client, model, number, pause) for number in range(CONVERSATIONS)))
    stayed = sum(Counter(turns).most_common(1)[0][1] for turns in met)
    assert stayed >= 0.95 * CONVERSATIONS * TURNS
    counts = Counter(server for turns in met for server in turns)
    assert max(counts.values()) <= 1.25 * CONVERSATIONS * TURNS / servers
