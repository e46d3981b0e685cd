"""A request that has passed this Citadel before is refused: a server of the fleet leads back to it."""

from collections.abc import Callable

from multidict import CIMultiDict

from apps.orchestration.fleet import Server
from apps.orchestration.health.probes import Probes
from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, Client, chat, streamed
from tests.instance import Instance
from tests.orchestration.health.watchers import configured

Start = Callable[..., Fleet]


async def own_hop(server: Fleet, client: Client, model: str) -> str:
    """The mark that Citadel puts on what it sends."""
    await client.post(chat(model))
    return server.log()[-1].headers["x-citadel-via"]


async def test_a_request_with_our_own_mark_is_refused(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    server = fleet(model)
    hop = await own_hop(server, client, model)
    for via in (hop, f"another,{hop}", f"{hop},another", f"another, {hop}", f"{hop} , another"):
        for body in (chat(model), streamed(model)):
            answer = await client.post(body, x_citadel_via=via)
            assert (answer.status, answer.code) == (508, "loop_detected")
            assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(server.calls()) == 1


async def test_all_that_is_asked_of_a_server_carries_the_mark(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    from apps.orchestration.models import Server as Row
    from citadel.doctor.servers import _ask_plainly

    other, config = f"{model}-o", configured(citadel)
    plain, ollama = fleet(model), fleet(other, kind="ollama")
    hop = await own_hop(plain, client, model)
    body = {"model": other, "keep_alive": "1m"}
    await client.post(body, "/management/models/preload", key=citadel.admin_key)
    probes = Probes(config)
    await probes.start()
    await probes.probe(Server(ollama.server_id, ollama.url, "ollama"))
    await probes.stop()
    await _ask_plainly(Row.objects.get(server_id=plain.server_id), config)
    asked = ollama.log() + ollama.log(probes=True) + plain.log() + plain.log(probes=True)
    purposes = {visit.headers["user-agent"].partition(" ")[2] for visit in asked if "user-agent" in visit.headers}
    assert purposes >= {"(probe)", "(preload)", "(doctor)"}
    assert {visit.headers.get("x-citadel-via") for visit in asked} == {hop}


async def test_marks_in_several_lines_are_one_list(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    hop = await own_hop(server, client, model)

    async def passed(*marks: str) -> int:
        headers = CIMultiDict([("x-citadel-via", mark) for mark in marks])
        async with client.session.post(CHAT, json=chat(model), headers=headers) as answer:
            return answer.status

    assert await passed(hop, "another") == 508
    assert await passed("one", f"another, {hop}") == 508
    assert await passed("one", "another, third") == 200
    assert server.log()[-1].headers["x-citadel-via"] == f"one,another, third,{hop}"
    async with client.session.get("/v1/models", headers=CIMultiDict([("x-citadel-via", hop)] * 2)) as answer:
        assert answer.status == 508


async def test_another_citadels_mark_is_passed_on_with_ours(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    hop = await own_hop(server, client, model)
    assert (await client.post(chat(model), x_citadel_via="another")).status == 200
    assert server.log()[-1].headers["x-citadel-via"] == f"another,{hop}"


async def test_a_citadel_that_is_its_own_server_does_not_go_round_for_ever(
    citadel: Instance, model: str, client: Client
) -> None:
    from apps.orchestration.registry import add

    add(f"self-{model}", citadel.url, kind="openai", models=[model], api_key=citadel.key())  # so it is not asked
    try:
        citadel.settle()
        answer = await client.post(chat(model), x_request_id=f"round-{model}")
        assert (answer.status, answer.code) == (508, "loop_detected")
        [record] = citadel.records(f"round-{model}")
        assert [attempt["outcome"] for attempt in record["attempts"]] == ["loop_detected"]  # type: ignore[attr-defined]
    finally:
        citadel.remove(f"self-{model}")


async def test_an_outage_is_told_as_one_though_another_server_leads_back_here(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    from apps.orchestration.registry import add

    fleet(model).behave("refuse")
    add(f"self-{model}", citadel.url, kind="openai", models=[model], api_key=citadel.key())
    try:
        citadel.settle()
        for number in range(4):
            answer = await client.post(chat(model), x_request_id=f"away-{model}-{number}")
            assert (answer.status, answer.code) == (503, "no_server_available")
            assert int(answer.headers["retry-after"]) >= 1
        records = [record for number in range(4) for record in citadel.records(f"away-{model}-{number}")]
        outcomes = [[attempt["outcome"] for attempt in record["attempts"]] for record in records]  # type: ignore[attr-defined]
        assert ["loop_detected"] in outcomes, "while the other is known to be out"
    finally:
        citadel.remove(f"self-{model}")
