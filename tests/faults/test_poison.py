"""Row 19 where a model has but one server: requests that make it fail take it from nobody else."""

from tests.faults.client import CHAT, Client, body_of
from tests.faults.conftest import Servers

POISONS = 10
TURNS = 3


async def test_different_requests_that_make_the_only_server_fail_do_others_no_harm(
    servers: Servers, client: Client, model: str
) -> None:
    servers(model)
    for turn in range(TURNS):
        for number in range(POISONS):
            poison = body_of(CHAT, model, text=f"[[behave:error 500]] {turn} {number}")
            assert (await client.ask(CHAT, poison)).status == 502
        good = await client.ask(CHAT, body_of(CHAT, model, text=f"good {turn}"))
        assert (good.status, good.headers.get("x-citadel-attempts")) == (200, "1")
