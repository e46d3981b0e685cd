"""`/management`: what operators see and do, each once well and once badly formed."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from apps.audit.statistics import MOST_STEPS, STEPS, step_of
from apps.gateway.management_api import LONGEST_PERIOD, period_of
from apps.orchestration.fleet import Model, Server
from apps.orchestration.preload import preload
from citadel.errors import BadRequest
from tests.fleet.control import Fleet
from tests.gateway.client import Client, chat
from tests.gateway.elsewhere import Elsewhere
from tests.instance import Instance, running
from tests.orchestration.health.watchers import configured

Start = Callable[..., Fleet]
SEE = ("/management/models/list", "/management/servers/status", "/management/stats")
ACT = ("/management/models/preload", "/management/cache/clear")


@pytest.mark.parametrize(
    ("role", "see", "act"),
    [("admin", 200, 400), ("operator", 200, 400), ("auditor", 200, 403), ("developer", 403, 403), ("", 401, 401)],
)
async def test_who_may(citadel: Instance, client: Client, role: str, see: int, act: int) -> None:
    key = citadel.key(role=role) if role else "nothing"
    for path in SEE:
        assert (await client.get(path, key=key)).status == see
    for path in ACT:
        assert (await client.post({"model": 5}, path, key=key)).status == act


async def row_of(client: Client, key: str, model: str) -> dict[str, Any]:
    page = (await client.get("/management/models/list?limit=1000", key=key)).json()
    found: dict[str, Any] = next(row for row in page["data"] if row["id"] == model)
    return found


async def test_models_with_their_class_and_servers(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    from apps.orchestration.models import Alias

    name = f"mixtral-{model}"
    one, other = fleet(name), fleet(name)
    alias = Alias.objects.create(name=f"alias-{model}", model=name)
    citadel.settle()
    try:
        row = await row_of(client, citadel.admin_key, name)
    finally:
        alias.delete()
    assert (row["class"], row["aliases"], row["loaded"]) == ("heavyweight", [alias.name], None)
    assert {server["server_id"] for server in row["servers"]} == {one.server_id, other.server_id}
    assert {server["state"] for server in row["servers"]} == {"active"}


async def test_lists_come_in_pages(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    for path, name in (("/management/models/list", "id"), ("/management/servers/status", "server_id")):
        before = [row[name] for row in (await client.get(path, key=citadel.admin_key)).json()["data"]]
        assert before == sorted(before)
        found, cursor = [], ""
        while cursor is not None:
            page = (await client.get(f"{path}?limit=1&cursor={quote(cursor)}", key=citadel.admin_key)).json()
            found += [row[name] for row in page["data"]]
            cursor = page["next"]
        after = [row[name] for row in (await client.get(path, key=citadel.admin_key)).json()["data"]]
        assert found == sorted(set(found))
        assert set(found) >= set(before) & set(after), "others come and go meanwhile"
        for query in ("limit=0", "limit=1001", "limit=x", "cursor=%00"):
            assert (await client.get(f"{path}?{query}", key=citadel.admin_key)).status == 400


async def test_servers_and_how_they_are(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    page = (await client.get("/management/servers/status", key=citadel.admin_key)).json()
    [row] = [row for row in page["data"] if row["server_id"] == server.server_id]
    assert (row["state"], row["health_status"], row["models"]) == ("active", "healthy", [model])
    assert page["summary"]["total"] == len(page["data"])


async def test_preloading_is_each_kinds_own(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    key = citadel.admin_key
    ollama, vllm = fleet(model, kind="ollama"), fleet(model, kind="vllm")
    answer = await client.post({"model": model, "keep_alive": "10m"}, "/management/models/preload", key=key)
    assert answer.status == 200, answer.body
    results = {row["server_id"]: row["result"] for row in answer.json()["servers"]}
    assert results == {ollama.server_id: "loaded", vllm.server_id: "always_loaded"}
    [asked] = [one for one in ollama.log() if one.path == "/api/generate"]
    sent = json.loads(asked.body)
    assert sent == {"model": model, "stream": False, "keep_alive": "10m"}
    assert not [one for one in vllm.log() if one.path.startswith("/api/")]
    row = await row_of(client, key, model)
    assert row["loaded"] is True
    assert {one["server_id"]: one["loaded"] for one in row["servers"]}[ollama.server_id] is True


@pytest.mark.parametrize("state", ["disabled", "draining"])
async def test_preloading_calls_no_server_that_is_not_to_be_called(
    citadel: Instance, fleet: Start, model: str, client: Client, state: str
) -> None:
    from apps.orchestration.models import Server as Row

    server = fleet(model, kind="ollama")
    Row.objects.filter(server_id=server.server_id).update(state=state)
    citadel.settle()
    body = {"model": model, "servers": [server.server_id]}
    answer = await client.post(body, "/management/models/preload", key=citadel.admin_key)
    asked = [one for one in server.log() if one.path == "/api/generate"]
    if state == "draining":
        assert (answer.status, len(asked)) == (200, 1)
        return
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"], asked) == (409, "conflict", "servers", [])
    assert f"'{server.server_id}' is {state}" in error["message"]


async def test_preloading_takes_what_a_server_says_for_nothing_that_was_found(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    key, server = citadel.admin_key, fleet(model, kind="ollama")
    heartbeat = f"/orchestration/servers/{server.server_id}/heartbeat"
    assert (await client.post({"load_metrics": {"cpu": 0.42, "queue": 7}}, heartbeat, key=key)).status == 200
    assert (await client.post({"model": model}, "/management/models/preload", key=key)).status == 200
    with redis.Redis.from_url(citadel.redis_url) as board:
        found = json.loads(board.hget("fleet:observed", server.server_id))
    assert (found.get("cpu"), found.get("queue"), found["models"]) == (None, None, [model])


@pytest.mark.parametrize(("said", "sent"), [("-1", -1), (-1, -1), (600, 600), ("2h", "2h")])
async def test_how_long_is_told_as_ollama_reads_it(
    citadel: Instance, fleet: Start, model: str, client: Client, said: str | int, sent: str | int
) -> None:
    """Go's durations have a unit: "-1" is none of them, and would be refused."""
    server = fleet(model, kind="ollama")
    body = {"model": model, "keep_alive": said}
    answer = await client.post(body, "/management/models/preload", key=citadel.admin_key)
    assert [row["result"] for row in answer.json()["servers"]] == ["loaded"]
    [asked] = [one for one in server.log() if one.path == "/api/generate"]
    assert json.loads(asked.body)["keep_alive"] == sent


@pytest.mark.parametrize(
    ("page", "told", "result"),
    [
        ("", None, "loaded"),
        ("/props", {"is_sleeping": True}, "not_supported"),
        ("/v1/models", {"data": [{"id": "MODEL", "status": {"value": "unloaded"}}]}, "not_supported"),
        ("/v1/models", {"data": [{"id": "MODEL", "status": {"value": "loaded"}}]}, "loaded"),
        ("/health", [], "failed"),
    ],
)
async def test_llamacpp_says_itself_what_it_has_in_memory(
    citadel: Instance, fleet: Start, model: str, client: Client, page: str, told: Any, result: str
) -> None:
    """One that sleeps has nothing there, and a router only some of its models."""
    server = fleet(model, kind="llamacpp")
    if page == "/health":
        server.kill()
    elif page:
        server.behave({"json_is": {"value": json.dumps(told).replace("MODEL", model)}}, path=page)
    answer = await client.post({"model": model}, "/management/models/preload", key=citadel.admin_key)
    assert [row["result"] for row in answer.json()["servers"]] == [result]


async def test_a_llamacpp_that_answers_to_any_name_has_it_in_memory(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    """A single one does: by another name than its own too. A router does not, nor one that sleeps."""
    server = fleet(model, kind="llamacpp")
    own, pages = f"{model}.gguf", {"/v1/models": {"data": [{"id": f"{model}.gguf"}]}}
    for told, result in (({}, "loaded"), ({"/props": {"is_sleeping": True}}, "not_supported")):
        for path, value in {**pages, **told}.items():
            server.behave({"json_is": {"value": json.dumps(value)}}, path=path)
        answer = await client.post({"model": model}, "/management/models/preload", key=citadel.admin_key)
        assert [row["result"] for row in answer.json()["servers"]] == [result]
    server.behave()
    router = {"data": [{"id": own, "status": {"value": "loaded"}}]}
    server.behave({"json_is": {"value": json.dumps(router)}}, path="/v1/models")
    answer = await client.post({"model": model}, "/management/models/preload", key=citadel.admin_key)
    assert [row["result"] for row in answer.json()["servers"]] == ["not_supported"]


@pytest.mark.parametrize(
    ("behaviour", "path", "why"),
    [
        ("error problem=loading", "/health", "status_503"),
        ("hang", "/health", "timeout"),
        ("die request rst", "/health", "disconnected"),
        ("", "", "refused"),
    ],
)
async def test_a_llamacpp_that_can_not_be_asked(
    citadel: Instance, fleet: Start, model: str, behaviour: str, path: str, why: str
) -> None:
    """One that refuses, loads or hangs has not said what it has in memory, and not kept it to itself either."""
    server = fleet(model, kind="llamacpp")
    if behaviour:
        server.behave(behaviour, path=path)
    else:
        server.kill()
    config = configured(citadel, health={"timeout": 1.0})
    one = Server(server.server_id, server.url, "llamacpp")
    [row] = await preload(config, Model(model, (one,)), [one], -1)
    assert (row.result, row.message) == ("failed", f"It can't be asked: {why}.")


async def test_preloading_starts_only_what_it_needs(citadel: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.orchestration.preload.Probes", None)
    monkeypatch.setattr("apps.orchestration.preload.CheckedTransport", None)
    servers = [Server("v", "http://127.0.0.1:1", "vllm"), Server("o", "http://127.0.0.1:1", "openai")]
    rows = await preload(configured(citadel), Model("m", tuple(servers)), servers, -1)
    assert [row.result for row in rows] == ["always_loaded", "not_supported"]


async def test_preloading_an_embedding_model(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    name = f"{model}-embed"
    server = fleet(name, kind="ollama")
    await client.post({"model": name}, "/management/models/preload", key=citadel.admin_key)
    [asked] = [one for one in server.log() if one.path == "/api/embed"]
    assert json.loads(asked.body)["input"] == []


async def test_a_server_that_can_not_preload_says_so(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    server, gone = fleet(model, kind="ollama"), fleet(model, kind="ollama")
    server.behave("error 500", next=1)
    gone.kill()
    answer = await client.post({"model": model}, "/management/models/preload", key=citadel.admin_key)
    assert {row["result"] for row in answer.json()["servers"]} == {"failed"}
    assert "127.0.0.1" not in answer.body.decode()


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "model"),
        ({"model": ""}, 400, "model"),
        ({"model": "MODEL", "server": "one"}, 400, "server"),
        ({"model": "nobody-has-it"}, 404, "model"),
        ({"model": "MODEL", "servers": ["nobody"]}, 404, "servers"),
        ({"model": "MODEL", "servers": "all"}, 400, "servers"),
        *(
            ({"model": "MODEL", "keep_alive": value}, 400, "keep_alive")
            for value in ("for ever", "300", "0s", "-1m", "", 0, -2, 1.5, 10**9, True, None)
        ),
    ],
)
async def test_preloading_what_can_not_be(
    citadel: Instance, fleet: Start, model: str, client: Client, body: dict[str, Any], status: int, param: str
) -> None:
    fleet(model)
    sent = json.loads(json.dumps(body).replace("MODEL", model))
    answer = await client.post(sent, "/management/models/preload", key=citadel.admin_key)
    assert (answer.status, answer.json()["error"]["param"]) == (status, param)


class Cached:
    """Two teams' cached chats of two models."""

    def __init__(self, citadel: Instance, client: Client, model: str):
        self._client = client
        self._keys = {team: citadel.key(f"{team}-{model}") for team in ("red", "blue")}
        self.models = (model, f"mixtral-{model}")
        self._model = model

    async def fill(self) -> None:
        for team in self._keys:
            for name in self.models:
                await self._client.post(chat(name, seed=1), key=self._keys[team])
        assert await self.hits() == {f"{team} {number}" for team in self._keys for number in (0, 1)}

    async def hits(self) -> set[str]:
        found = set()
        for team, key in self._keys.items():
            for number, name in enumerate(self.models):
                answer = await self._client.post(chat(name, seed=1), key=key)
                if answer.cache == "hit":
                    found.add(f"{team} {number}")
        return found


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ('{"model": "MODEL"}', {"red 1", "blue 1"}),
        ('{"team": "red-MODEL"}', {"blue 0", "blue 1"}),
        ('{"team": "red-MODEL", "model": "MODEL"}', {"red 1", "blue 0", "blue 1"}),
        ('{"class": "heavyweight"}', {"red 0", "blue 0"}),
        ('{"team": "blue-MODEL", "class": "heavyweight"}', {"red 0", "red 1", "blue 0"}),
        ('{"model": "another"}', {"red 0", "red 1", "blue 0", "blue 1"}),
    ],
)
async def test_clearing_the_cache(
    citadel: Instance, fleet: Start, model: str, client: Client, asked: str, left: set[str]
) -> None:
    cached = Cached(citadel, client, model)
    for name in cached.models:
        fleet(name)
    await cached.fill()
    body = asked.replace("MODEL", model).encode()
    cleared = await client.post(body, "/management/cache/clear", key=citadel.admin_key)
    assert (cleared.status, cleared.json()["status"]) == (200, "cleared")
    assert await cached.hits() == left


@pytest.mark.parametrize("body", [b"", b'{"all": true}'])
async def test_clearing_everything_in_every_worker(two_workers: Elsewhere, body: bytes) -> None:
    """While no server is there to ask, whatever is answered comes out of the cache."""
    async with two_workers.asking() as client:
        question = chat(two_workers.model, str(body), seed=1)
        assert (await client.post(question)).cache == "miss"
        two_workers.server.kill()
        try:
            assert await statuses(two_workers, question) == {200}
            admin = two_workers.citadel.admin_key
            assert (await client.post(body, "/management/cache/clear", key=admin)).json()["models"] is None
            await asyncio.sleep(1)
            assert 200 not in await statuses(two_workers, question)
        finally:
            two_workers.server.restart()
            await until_served(two_workers, question)


async def statuses(there: Elsewhere, question: dict[str, Any]) -> set[int]:
    """Of answers over connections of their own, so that both workers get some."""
    found = set()
    for _ in range(16):
        async with there.asking() as client:
            found.add((await client.post(question)).status)
    return found


async def until_served(there: Elsewhere, question: dict[str, Any]) -> None:
    async with asyncio.timeout(15):
        while await statuses(there, {**question, "seed": 2}) != {200}:
            pass


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A Citadel that nobody else caches anything in."""
    settings = {
        "CITADEL_DEMO_FLEET": "0",
        "CITADEL_SERVER__WORKERS": "2",
        "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0",
    }
    with running(tmp_path_factory.mktemp("two"), settings) as citadel, Elsewhere.on(citadel) as there:
        yield there


async def test_clearing_embeddings(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    body = {"model": model, "input": ["a", "b"]}
    for expected in ("miss", "hit"):
        assert (await client.post(body, "/v1/embeddings")).cache == expected
    await client.post({"model": model}, "/management/cache/clear", key=citadel.admin_key)
    assert (await client.post(body, "/v1/embeddings")).cache == "miss"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"team": 5}, 400, "team"),
        ({"modle": "x"}, 400, "modle"),
        ({"all": False}, 400, "all"),
        ({"all": True, "team": "x"}, 400, "all"),
        ({"team": ""}, 400, "team"),
        ({"model": "\0"}, 400, "model"),
        ({"class": "of-nothing"}, 404, "class"),
        ({"class": "heavyweight", "model": "a"}, 400, "class"),
    ],
)
async def test_clearing_what_can_not_be(
    citadel: Instance, client: Client, body: dict[str, Any], status: int, param: str
) -> None:
    answer = await client.post(body, "/management/cache/clear", key=citadel.admin_key)
    assert (answer.status, answer.json()["error"]["param"]) == (status, param)


async def test_statistics_of_what_was_asked(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    team = f"team-{model}"
    key, server = citadel.key(team), fleet(model)
    replies = [await client.post(chat(model, seed=1), key=key) for _ in range(3)]
    server.behave("error 500")
    replies.append(await client.post(chat(model, "else"), key=key))
    assert [reply.status for reply in replies] == [200, 200, 200, 502]
    for reply in replies:
        assert citadel.records(reply.identity)
    found = (await client.get(f"/management/stats?period=1h&team={team}", key=citadel.admin_key)).json()
    total = found["total"]
    assert (total["requests"], total["errors"]) == (4, 1)
    assert total["cache"] == {"hit": 2, "coalesced": 0, "miss": 1, "bypass": 1, "hit_rate": 0.6667}
    assert total["total_tokens"] == total["prompt_tokens"] + total["completion_tokens"] > 0
    assert 0 < total["latency_ms"]["p50"] <= total["latency_ms"]["p95"] <= total["latency_ms"]["p99"]
    assert list(found["by_team"]) == [team]
    assert found["by_model"][model] == total
    assert found["by_server"][server.server_id]["requests"] >= 3
    assert found["outcomes"]["ok"] == 3
    assert sum(one["requests"] for one in found["timeline"]) == 4
    assert found["complete"]
    nothing = (await client.get(f"/management/stats?period=1h&team=x{team}", key=citadel.admin_key)).json()
    assert (nothing["total"]["requests"], nothing["total"]["latency_ms"], nothing["by_model"]) == (0, None, {})


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("period=x", "period"),
        ("period=0h", "period"),
        ("period=367d", "period"),
        ("period=999999999d", "period"),
        ("period=-1h", "period"),
        ("since=yesterday", "since"),
        ("until=0001-01-01", "until"),
        ("since=2026-01-02T00:00:00Z%26until=2026-01-01T00:00:00Z", "since"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "since"),
        ("since=2020-01-01T00:00:00Z", "since"),
        ("model=%00", "model"),
    ],
)
async def test_periods_that_are_none(citadel: Instance, client: Client, query: str, param: str) -> None:
    answer = await client.get(f"/management/stats?{query}", key=citadel.admin_key)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


async def test_a_moment_may_be_written_with_any_offset(citadel: Instance, client: Client) -> None:
    query = "since=2026-01-01T00:00:00-23:59&until=2026-01-02T00:00:00Z"
    answer = await client.get(f"/management/stats?{query}", key=citadel.admin_key)
    assert answer.status == 200, answer.body
    assert answer.json()["since"] == "2026-01-01T23:59:00Z"


@given(st.timedeltas(timedelta(seconds=1), LONGEST_PERIOD))
def test_a_period_has_few_steps(period: timedelta) -> None:
    step = step_of(period)
    assert period <= step * MOST_STEPS or step == STEPS[-1]
    assert step == STEPS[0] or period > STEPS[STEPS.index(step) - 1] * MOST_STEPS


@given(*[st.none() | st.text(max_size=20) | st.datetimes().map(datetime.isoformat) for _ in range(3)])
def test_any_words_make_a_period_or_a_refusal(period: str | None, since: str | None, until: str | None) -> None:
    now = datetime(2026, 11, 25, tzinfo=UTC)
    try:
        start, end = period_of(period, since, until, now)
    except BadRequest:
        return
    assert timedelta() < end - start <= LONGEST_PERIOD
