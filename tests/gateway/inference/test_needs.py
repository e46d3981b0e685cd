"""What is too long for a server goes to those with a longer context, through whichever door it comes."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from apps.gateway.inference.doors import CHAT, COMPLETIONS, EMBEDDINGS, Door
from apps.gateway.inference.needs import CHARACTERS_A_TOKEN, needs_of
from apps.orchestration.fleet import Holding, Model, Server
from tests.fleet.control import Fleet
from tests.gateway.client import Client
from tests.instance import Instance

Start = Callable[..., Fleet]

SHORT, LONG = 100, 1000
"""Tokens of context."""
TOKENS = 500
TEXT = "abcdef" * TOKENS

GIVEN: list[Any] = [
    pytest.param(TEXT, id="text"),
    pytest.param(["a", TEXT, "b"], id="texts"),
    pytest.param([7] * TOKENS, id="tokens"),
    pytest.param([[7], [7] * TOKENS], id="token arrays"),
]
SEVERAL: list[Any] = [
    pytest.param(["abcdef" * SHORT] * 9, id="texts"),
    pytest.param([[7] * SHORT] * 9, id="token arrays"),
]


def body(door: Door, model: str, given: Any) -> dict[str, Any]:
    if door is CHAT:
        return {"model": model, "messages": [{"role": "user", "content": given}]}
    return {"model": model, ("prompt" if door is COMPLETIONS else "input"): given}


def tokens(door: Door, given: Any, *contexts: int | None, states: tuple[str, ...] = ()) -> int:
    """That a request needs of its server, where servers have these contexts."""
    servers = tuple(
        Server(f"s{n}", f"http://s{n}", "openai", state=state)
        for n, state in enumerate(states or ("active",) * len(contexts))
    )
    known = [length for length in contexts if length]
    holdings = {
        server.server_id: Holding(context_length=length, capabilities=None)
        for server, length in zip(servers, contexts, strict=True)
    }
    model = Model("m", servers, context_length=min(known, default=None), holdings=holdings)
    request = door.read(msgspec.json.encode(body(door, "m", given)))
    return needs_of(door, request, model, {}, "weighted_round_robin").tokens


@pytest.mark.parametrize(
    ("door", "given"),
    [
        pytest.param(door, given.values[0], id=f"{door.name}, {given.id}")
        for door in (COMPLETIONS, EMBEDDINGS)
        for given in GIVEN
    ],
)
async def test_what_is_too_long_for_one_goes_to_the_other(
    citadel: Instance, fleet: Start, model: str, client: Client, door: Door, given: Any
) -> None:
    from apps.orchestration.models import ServedModel

    short, long = servers = [fleet(model, kind="vllm", context_length=length) for length in (SHORT, LONG)]
    for server, length in zip(servers, (SHORT, LONG), strict=True):
        ServedModel.objects.filter(server__server_id=server.server_id).update(context_length=length)
    citadel.settle()
    for number in range(4):
        reply = await client.post({**body(door, model, given), "user": str(number)}, door.path)
        assert (reply.status, reply.headers["x-citadel-server"]) == (200, long.server_id)
    assert not [visit for visit in short.log() if visit.method == "POST"], "it is not even asked"


@pytest.mark.parametrize("door", [COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize("given", GIVEN)
def test_what_a_request_needs_is_what_the_longest_of_its_texts_needs(door: Door, given: Any) -> None:
    assert tokens(door, given, SHORT, LONG) == TOKENS


@pytest.mark.parametrize("door", [COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize("given", SEVERAL)
def test_each_text_has_the_context_to_itself(door: Door, given: Any) -> None:
    assert tokens(door, given, SHORT, LONG) == SHORT


@pytest.mark.parametrize("door", [CHAT, COMPLETIONS])
def test_a_prompt_that_fits_nowhere_is_as_long_as_it_is(door: Door) -> None:
    assert tokens(door, TEXT, SHORT, SHORT) == len(TEXT) // CHARACTERS_A_TOKEN


@pytest.mark.parametrize(
    ("contexts", "states", "needed"),
    [
        ((SHORT, 2 * SHORT), (), 2 * SHORT),
        ((SHORT, LONG), ("active", "disabled"), SHORT),
        ((SHORT, LONG), ("draining", "disabled"), TOKENS),
        ((SHORT, None), (), TOKENS),
        ((None, None), (), TOKENS),
    ],
)
def test_an_input_that_fits_nowhere_goes_where_most_of_it_fits(
    contexts: tuple[int | None, ...], states: tuple[str, ...], needed: int
) -> None:
    """Many servers of embeddings cut it, as they are asked to or always do."""
    assert tokens(EMBEDDINGS, TEXT, *contexts, states=states) == needed
