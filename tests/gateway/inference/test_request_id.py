"""Each answer names its request: by the client's own id if it is sane, by a new one else."""

import re
from collections.abc import Callable

import pytest

from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, Client, chat, streamed
from tests.instance import Instance

Start = Callable[..., Fleet]
OURS = re.compile(r"req_[0-9a-f]{24}")
SANE = ["7", "req-1", "_id12345", "0123-4567.89:ab_c", "Root=1-67891233-abc", "q83+/w==", "-", "x" * 128]
INSANE = [
    "",
    "x" * 129,
    "with space",
    "two,of-them",
    "quote'quote",
    "ünïcödé-long",
    "semi;colon",
    "<b>bold</b>",
]


@pytest.mark.parametrize("own", SANE)
async def test_a_sane_one_is_kept_on_the_whole_way(
    citadel: Instance, fleet: Start, model: str, client: Client, own: str
) -> None:
    server = fleet(model)
    for body in (chat(model), streamed(model)):
        assert (await client.post(body, x_request_id=own)).identity == own
    assert [seen.headers["x-request-id"] for seen in server.log()] == [own, own]
    assert citadel.records(own)


@pytest.mark.parametrize("own", INSANE)
async def test_an_insane_one_is_replaced(fleet: Start, model: str, client: Client, own: str) -> None:
    server = fleet(model)
    answer = await client.post(chat(model), x_request_id=own)
    assert OURS.fullmatch(answer.identity)
    [seen] = server.log()
    assert seen.headers["x-request-id"] == answer.identity


async def test_answers_of_every_sort_have_one_and_no_two_the_same(fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    answers = [
        await client.post(chat(model)),
        await client.post(chat("nobody")),
        await client.post(b"{"),
        await client.post(chat(model), key="nobody"),
        await client.post(b"x" * (11 << 20), connection="close"),
        await client.get("/v1/models"),
        await client.get("/v1/nothing"),
        await client.get(CHAT),
        await client.get("/health/live"),
    ]
    assert [answer.status for answer in answers] == [200, 404, 400, 401, 413, 200, 404, 405, 200]
    assert all(OURS.fullmatch(answer.identity) for answer in answers)
    assert len({answer.identity for answer in answers}) == len(answers)
    refused = await client.post(b"{", x_request_id="my-own-request")
    assert refused.identity == "my-own-request"
