"""What is not inference is bounded too, generously: by key, over all workers, and more so what fleets say."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from apps.gateway.limits.admission import Refused
from apps.gateway.limits.floods import OF_FLEET, Floods
from apps.gateway.limits.workers import Workers
from tests.gateway.access.test_oauth import GRANT, INTROSPECT, REVOKE, TOKEN, as_client, post
from tests.gateway.access.test_refusals import Ask, line_of
from tests.gateway.client import CHAT, Reply, chat
from tests.gateway.elsewhere import Elsewhere
from tests.instance import running
from tests.orchestration.socket import ASKING, refused, watching
from tests.security_lines import told

LIMIT = 20
FLEET = 20 * LIMIT
"""Of heartbeats and what goes with them, in each worker."""
THOUSAND = 1000 * LIMIT // 600
"""Servers, where as many fewer are admitted."""
NEXT_LINES = 1.1
"""Seconds after which what others did has no share in the lines that are written of an event in a second."""
MODELS, PRICES, SOCKETS = "/v1/models", "/api/v1/prices", "/ws/console"
SERVERS, REGISTER = "/orchestration/servers", "/orchestration/servers/register"
SETTINGS = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_SERVER__WORKERS": "2",
    "CITADEL_LIMITS__OTHERS_PER_MINUTE": str(LIMIT),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """One of two workers that bounds it narrowly."""
    with running(tmp_path_factory.mktemp("floods"), SETTINGS) as citadel, Elsewhere.on(citadel) as own:
        yield own


def test_who_has_flooded_is_remembered_while_others_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose minute began first is forgotten, where there are too many to remember, and nobody else."""
    monkeypatch.setattr("apps.gateway.limits.floods.MOST_KNOWN", 3)
    floods = Floods(None, 1, Workers(1))  # which asks no Redis for that
    for key in (*"abc", *"bc" * (OF_FLEET - 1), "d"):
        floods.check_fleet(key)
    for key in "bc":
        with pytest.raises(Refused):
            floods.check_fleet(key)
    floods.check_fleet("a")


async def test_exactly_so_many_are_admitted_by_all_workers(own: Elsewhere) -> None:
    key, other = own.key(), own.key()
    async with own.asking(key) as client:
        replies = [await client.get(MODELS, key=key, connection="close") for _ in range(LIMIT + 5)]
        assert [reply.status for reply in replies] == [200] * LIMIT + [429] * 5
        assert replies[-1].code == "rate_limit_exceeded"
        assert 0 < int(replies[-1].headers["retry-after"]) <= 60
        assert "not inference" in replies[-1].json()["error"]["message"]
        assert (await client.get(MODELS, key=other)).status == 200, "another key is another client"
        assert (await client.post(chat(own.model), key=key)).status == 200, "inference is counted apart"
        assert (await client.get("/health", key=key)).status == 200
        for path in (TOKEN, INTROSPECT, REVOKE):
            reply = await post(client, path, GRANT | {"token": "x"}, **as_client(key))
            assert (reply.status, reply.json()["error"]) == (429, "temporarily_unavailable")
            assert 0 < int(reply.headers["retry-after"]) <= 60
        assert {(await client.get(MODELS, key="wrong")).status for _ in range(LIMIT + 5)} == {401}


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/webhooks/alertmanager"), ("GET", "/metrics"), ("GET", "/health/detailed")]
)
async def test_nor_are_more_where_strangers_ask_too(own: Elsewhere, method: str, path: str) -> None:
    """What a key may not is counted as well."""
    key = own.key()
    async with own.asking(key) as client:
        body = b"{}" if method == "POST" else None
        statuses = [(await client.ask(method, path, data=body)).status for _ in range(LIMIT + 5)]
        assert statuses == [200 if "health" in path else 403] * LIMIT + [429] * 5
        assert (await client.get("/health/live")).status == 200


async def test_whoever_asks_for_a_socket_is_counted_by_all_workers(own: Elsewhere) -> None:
    """One that is opened, and what a key may not."""
    await asyncio.sleep(NEXT_LINES)
    key, admin = own.key(), own.citadel.admin_key
    async with own.asking(key) as client:
        statuses = [(await client.get(SOCKETS, **ASKING)).status for _ in range(LIMIT + 5)]
        assert statuses == [403] * LIMIT + [429] * 5
        assert (await client.get(MODELS)).status == 429
    for _ in range(LIMIT):
        async with watching(own.citadel, key=admin):
            pass
    assert await refused(own.citadel, {"authorization": f"Bearer {admin}"}) == (429, "rate_limit_exceeded")
    assert told(own.citadel, event="rate_exceeded", who=key.split("_")[1], path=SOCKETS)


@pytest.mark.parametrize(("body", "status"), [(chat("none"), 404), ({}, 400)])
async def test_what_inference_refuses_at_its_door_is_counted_too(
    own: Elsewhere, body: dict[str, object], status: int
) -> None:
    """No limit of inference has seen it; what these let in goes on."""
    await asyncio.sleep(NEXT_LINES)
    key = own.key()
    async with own.asking(key) as client:
        statuses = [(await client.post(body)).status for _ in range(LIMIT + 5)]
        assert statuses == [status] * LIMIT + [429] * 5
        assert (await client.get(MODELS)).status == 429
        assert (await client.post(chat(own.model))).status == 200
        await asyncio.to_thread(own.server.behave, "error 400")
        assert {(await client.post(chat(own.model, str(n)))).status for n in range(3)} == {400}, "a server's own words"
        await asyncio.to_thread(own.server.behave)
    assert told(own.citadel, event="rate_exceeded", who=key.split("_")[1], path="/v1/chat/completions")


@pytest.mark.parametrize(("role", "scopes"), [("server", None), ("operator", None), ("operator", ["fleet.register"])])
async def test_servers_come_and_go_as_a_fleet_does(own: Elsewhere, role: str, scopes: list[str] | None) -> None:
    """All that share a key at once, and the key asks for all else as others do."""
    key = own.key(role, scopes)
    async with own.asking(key) as client:

        async def live(number: int) -> set[int]:
            server_id = f"s-{role}-{number}"
            place = f"{SERVERS}/{server_id}"
            replies = [await client.post(at(server_id), path) for path in (REGISTER, "/v1/servers")]
            replies += [await client.post({}, f"{place}/heartbeat") for _ in range(3)]
            return {reply.status for reply in (*replies, await client.ask("DELETE", place))}

        assert set().union(*await asyncio.gather(*map(live, range(THOUSAND)))) == {200}
        replies = [await client.get(PRICES) for _ in range(LIMIT + 5)]
        assert [reply.status for reply in replies] == [200] * LIMIT + [429] * 5
        assert await live(0) == {200}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", f"{SERVERS}/none/heartbeat", {}, 404),
        ("POST", f"{SERVERS}/refused/heartbeat", {"load_metrics": 7}, 400),
        ("POST", f"{SERVERS}/refused/heartbeat", {"url": "http://127.0.0.1:10"}, 409),
        ("POST", REGISTER, {}, 400),
        ("POST", REGISTER, {"id": "x", "hostname": "169.254.169.254", "port": 9}, 400),
        ("DELETE", f"{SERVERS}/none", None, 404),
    ],
)
async def test_what_is_refused_to_servers_counts_as_all_else_does(
    own: Elsewhere, method: str, path: str, body: dict[str, object] | None, status: int
) -> None:
    """No fleet says it again and again; and what is good goes on."""
    key = own.key("server")
    async with own.asking(key) as client:
        assert (await client.post(at("refused"), REGISTER)).status == 200
        data = None if body is None else json.dumps(body).encode()
        replies = [await client.ask(method, path, data=data) for _ in range(LIMIT + 5)]
        assert [reply.status for reply in replies] == [status] * LIMIT + [429] * 5
        assert replies[-1].code == "rate_limit_exceeded"
        assert (await client.get(PRICES)).status == 429
        assert (await client.post({}, f"{SERVERS}/refused/heartbeat")).status == 200
        assert (await client.post(at("refused"), REGISTER)).status == 200
        assert (await client.ask("DELETE", f"{SERVERS}/refused")).status == 200


async def test_a_worker_takes_no_more_of_a_key_than_a_fleet_says(own: Elsewhere) -> None:
    key, other = own.key("server"), own.key("server")
    beat, more = f"{SERVERS}/much/heartbeat", 2 * FLEET // 4 + 5
    async with own.asking(key) as client:
        assert (await client.post(at("much"), REGISTER)).status == 200

        async def beats() -> list[Reply]:
            return [await client.post({}, beat) for _ in range(more)]

        replies = [reply for some in await asyncio.gather(*(beats() for _ in range(4))) for reply in some]
        taken = [reply.status for reply in replies].count(200)
        refused = [reply for reply in replies if reply.status != 200]
        assert FLEET - 1 <= taken < 2 * FLEET
        assert {(reply.status, reply.code) for reply in refused} == {(429, "rate_limit_exceeded")}
        assert "heartbeats" in refused[0].json()["error"]["message"]
        assert 0 < int(refused[0].headers["retry-after"]) <= 60
        assert {(await client.get(PRICES)).status for _ in range(5)} == {200}, "all else is counted apart"
        assert (await client.post(at("less"), REGISTER, key=other)).status == 200
    assert told(own.citadel, event="rate_exceeded", who=key.split("_")[1], path=beat)


def at(server_id: str) -> dict[str, object]:
    """What a server says as it registers, where nobody is."""
    return {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http"}


@pytest.mark.parametrize(
    ("role", "scopes"), [("server", ["models.use"]), ("operator", ["models.use"]), ("owner", None)]
)
async def test_a_key_that_registers_none_is_counted_whatever_it_is_called(
    own: Elsewhere, role: str, scopes: list[str] | None
) -> None:
    """An owner may make such keys, and a list of prices is looked up in the database."""
    key = own.key(role, scopes)
    async with own.asking(key) as client:
        statuses = [(await client.get(PRICES)).status for _ in range(LIMIT)]
        statuses += [(await client.post({}, REGISTER)).status for _ in range(5)]
        assert statuses == [200] * LIMIT + [429] * 5
        assert (await client.ask("DELETE", f"{SERVERS}/none")).status == 429
        assert (await client.post({}, f"{SERVERS}/none/heartbeat")).status == 429


async def test_nor_does_it_send_heartbeats_for_nothing(own: Elsewhere) -> None:
    key = own.key()
    async with own.asking(key) as client:
        statuses = [(await client.post({}, f"{SERVERS}/none/heartbeat")).status for _ in range(LIMIT + 5)]
        assert statuses == [403] * LIMIT + [429] * 5


async def test_the_security_log_says_whose_they_were(own: Elsewhere) -> None:
    """However it was proved."""
    await asyncio.sleep(NEXT_LINES)
    key = own.key()
    async with own.asking() as client:
        lent = (await client.post(b"", "/api/v1/auth/token", key=key)).json()["access_token"]
        for _ in range(LIMIT):
            await client.get(MODELS, key=key)
        bearer = {"authorization": f"Bearer {lent}"}
        asked: list[tuple[str, Ask]] = [
            (MODELS, lambda identity: client.get(MODELS, key=lent, x_request_id=identity)),
            (CHAT, lambda identity: client.post(chat("none"), key=lent, x_request_id=identity)),
            (TOKEN, lambda identity: post(client, TOKEN, GRANT, **as_client(key), x_request_id=identity)),
            (REVOKE, lambda identity: post(client, REVOKE, {"token": "x"}, **bearer, x_request_id=identity)),
        ]
        for path, ask in asked:
            line = await line_of(own.citadel, ask)
            assert (line["event"], line["path"], line.get("who")) == ("rate_exceeded", path, key.split("_")[1])


async def test_without_redis_each_worker_goes_by_its_share(own: Elsewhere) -> None:
    key = own.key()
    async with own.asking(key) as client:
        with own.silent_redis():
            statuses = [(await client.get(MODELS, key=key)).status for _ in range(LIMIT + 5)]
    assert sorted(set(statuses)) == [200, 429]
    assert told(own.citadel, event="rate_exceeded", who=key.split("_")[1])
    assert LIMIT // 2 <= statuses.count(200) <= LIMIT
