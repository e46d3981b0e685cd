"""Servers register themselves: both forms, again and again, and by whose word."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from apps.orchestration import fleet
from tests.fleet.backend.config import Kind
from tests.fleet.control import Fleet
from tests.gateway.client import Client, chat
from tests.held_up import HELD_UP
from tests.instance import Instance, free_port, running

REGISTER, LIST = "/orchestration/servers/register", "/orchestration/servers/list"
FIELDS = {
    "server_id",
    "hostname",
    "port",
    "url",
    "role",
    "kind",
    "models",
    "services",
    "capabilities",
    "weight",
    "state",
    "health_status",
    "health_source",
    "health_reason",
    "last_seen",
    "consecutive_failures",
    "consecutive_successes",
    "load_metrics",
}
ISSUE = {
    "id": "llm-02-test",
    "hostname": "127.0.0.1",
    "port": 8000,
    "role": "Business AI Gateway",
    "capabilities": ["business_models"],
}


def flat(server_id: str, server: Fleet, **more: Any) -> dict[str, Any]:
    return {"id": server_id, "hostname": server.host, "port": server.port, **more}


async def row(client: Client, server_id: str) -> dict[str, Any]:
    listed = (await client.get(LIST)).json()
    found: dict[str, Any] = listed["servers"][server_id]
    return found


async def until_models(client: Client, server_id: str, models: list[str]) -> dict[str, Any]:
    begun = time.monotonic()
    while (found := await row(client, server_id))["models"] != models:
        assert time.monotonic() - begun < 5 + HELD_UP, found
        await asyncio.sleep(0.02)
    return found


async def test_the_example_of_the_issue(citadel: Instance, operator: Client) -> None:
    """Nothing listens there: it is registered all the same, at once."""
    try:
        begun = time.monotonic()
        for _ in range(2):
            answer = await operator.post(ISSUE, REGISTER)
            assert answer.status == 200, answer.body
            told = answer.json()
            assert (told["status"], told["server_id"], told["state"]) == ("registered", "llm-02-test", "active")
            assert told["heartbeat_interval"] == 30
        assert time.monotonic() - begun < 2 + HELD_UP
        listed = (await operator.get(LIST)).json()
        assert set(listed) == {"total_servers", "servers", "last_updated"}
        assert listed["total_servers"] == len(listed["servers"])
        found = listed["servers"]["llm-02-test"]
        assert set(found) == FIELDS
        assert found["role"] == "Business AI Gateway"
        assert found["capabilities"] == ["business_models"]
        assert (found["kind"], found["models"]) == (None, [])
        assert set(found["load_metrics"]) == {"cpu", "memory", "gpu", "in_flight", "queue"}
    finally:
        citadel.remove("llm-02-test")


@pytest.mark.parametrize("kind", ["openai", "vllm", "llamacpp", "ollama"])
async def test_what_a_server_is_and_holds_is_found_out(
    operator: Client, client: Client, server_id: str, model: str, kind: Kind
) -> None:
    with Fleet.start(kind=kind, models=[model], context_length=4096) as server:
        assert (await operator.post(flat(server_id, server), REGISTER)).status == 200
        await until_models(operator, server_id, [model])
        assert (await row(operator, server_id))["kind"] == kind  # the list reads servers first, then their models
        assert (await client.post(chat(model))).status == 200
        [listed] = [one for one in (await client.get("/v1/models")).json()["data"] if one["id"] == model]
        assert listed["citadel"].get("context_length") == (None if kind == "openai" else 4096)


async def test_what_a_server_has_become_at_its_address_is_found_out(
    operator: Client, server_id: str, model: str
) -> None:
    """Its list of models reads as before, but the health page of its former kind is not there."""
    with Fleet.start(kind="vllm", models=[model]) as server:
        assert (await operator.post(flat(server_id, server), REGISTER)).status == 200
        await until_models(operator, server_id, [model])
        server.restart("--kind", "ollama")
        assert (await operator.post(flat(server_id, server), REGISTER)).status == 200
        async with asyncio.timeout(5 + HELD_UP):
            while (await row(operator, server_id))["kind"] != "ollama":  # noqa: ASYNC110  # nobody tells when
                await asyncio.sleep(0.05)
        probed = (await operator.get(f"/orchestration/servers/{server_id}/health?probe=true")).json()
        assert (probed["status"], probed["consecutive_failures"]) == ("healthy", 0)


@pytest.mark.parametrize(
    ("said", "names_model", "known"),
    [
        ({"kind": "ollama"}, False, False),
        ({"kind": "ollama"}, True, True),
        ({"kind": "http"}, False, True),
        ({}, False, False),
        ({}, True, False),
    ],
)
async def test_it_is_not_known_before_its_kind_is_and_a_model_where_that_has_a_list_of_them(
    operator: Client, server_id: str, model: str, said: dict[str, Any], names_model: bool, known: bool
) -> None:
    """So long whoever probes it has it asked: it may have registered before it listens."""
    body = {"id": server_id, "hostname": "127.0.0.1", "port": free_port(), **said}
    assert (await operator.post(body | ({"models": [model]} if names_model else {}), REGISTER)).status == 200
    assert (await asyncio.to_thread(fleet.load)).servers[server_id].known is known


async def test_a_named_model_is_served_as_soon_as_the_registration_is_answered(
    operator: Client, client: Client, server_id: str, model: str
) -> None:
    """And what the server holds besides is found."""
    with Fleet.start(models=[model, f"{model}-b"]) as server:
        answer = await operator.post(flat(server_id, server, models=[model]), REGISTER)
        assert answer.json()["models"] == [model]
        assert (await client.post(chat(model))).status == 200
        await until_models(operator, server_id, [model, f"{model}-b"])
        assert (await operator.post(flat(server_id, server, models=[model]), REGISTER)).json()["models"] == [
            model,
            f"{model}-b",
        ]


async def test_a_model_that_a_server_names_no_more_goes(
    operator: Client, client: Client, server_id: str, model: str
) -> None:
    """By the word of whoever has named it: what an operator names stays, and a registration without models says
    nothing of them. At once where the server's kind has no list of what it holds.
    """
    from apps.orchestration import registry
    from apps.orchestration.dialects import FoundModel
    from apps.orchestration.models import Server

    gone, kept = f"{model}-gone", f"{model}-kept"

    async def models(**more: Any) -> list[str]:
        told = {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http", **more}
        found: list[str] = (await operator.post(told, REGISTER)).json()["models"]
        return found

    assert await models(models=[model, gone]) == [model, gone]
    assert await models() == [model, gone]
    registry.name_models(Server.objects.get(server_id=server_id), [FoundModel(kept)])
    assert await models(models=[model, gone, kept]) == [model, gone, kept]
    assert await models(models=[model]) == [model, kept]
    assert (await client.post(chat(gone))).status == 404
    assert await models(models=[]) == [kept]


async def test_a_model_that_is_named_no_more_is_found_where_the_server_holds_it(
    operator: Client, server_id: str, model: str
) -> None:
    with Fleet.start(models=[model, f"{model}-b"]) as server:
        await operator.post(flat(server_id, server, models=[model, f"{model}-b", f"{model}-c"]), REGISTER)
        await until_kind(server_id)
        answer = await operator.post(flat(server_id, server, models=[model]), REGISTER)
        assert answer.json()["models"] == [model, f"{model}-b", f"{model}-c"], "it is served until the server is asked"
        await until_models(operator, server_id, [model, f"{model}-b"])


async def until_kind(server_id: str) -> None:
    """Until the server has been asked."""
    from apps.orchestration.models import Server

    begun = time.monotonic()
    while not (await asyncio.to_thread(Server.objects.get, server_id=server_id)).kind:
        assert time.monotonic() - begun < 5 + HELD_UP
        await asyncio.sleep(0.02)


def test_what_is_named_no_more_at_another_address_goes(citadel: Instance, server_id: str) -> None:
    assert _register(server_id, kind="openai", models=["a", "b"]).models == ["a", "b"]
    assert _register(server_id, kind="openai", models=["a"]).models == ["a", "b"]
    assert _register(server_id, kind="openai", models=["a", "c"]).models == ["a", "b", "c"]
    assert _register(server_id, kind="openai", models=["a"], port=10).models == ["a"]


def nested(server_id: str, server: Fleet, **more: Any) -> dict[str, Any]:
    info = {"server_id": server_id, "hostname": server.host, "port": server.port, "role": "GPU box", **more}
    endpoints = {"health_endpoint": f"{server.url}/health", "models_endpoint": "/v1/models", "metrics_endpoint": None}
    return {"server_info": info, **endpoints}


async def test_the_nested_form(operator: Client, client: Client, server_id: str, model: str) -> None:
    from apps.orchestration.models import Server

    with Fleet.start(models=[model], api_key="secret") as server:
        more = {"models": [{"name": model, "context_length": 512}], "services": {"web": 80}, "api_key": "secret"}
        told = nested(server_id, server, weight=3, max_concurrent=7, capabilities={"business_models": True}, **more)
        answer = await operator.post(told, REGISTER)
        assert (answer.status, answer.json()["models"]) == (200, [model])
        assert (await client.post(chat(model))).status == 200
        found = await row(operator, server_id)
        assert (found["weight"], found["role"], found["services"]) == (3, "GPU box", {"web": 80})
        assert found["capabilities"] == {"business_models": True}
        kept = Server.objects.get(server_id=server_id)
        assert (kept.health_endpoint, kept.models_endpoint, kept.metrics_endpoint) == ("/health", "/v1/models", "")
        assert (kept.max_concurrent, kept.models.get().context_length) == (7, 512)
        assert b"secret" not in (await operator.get(LIST)).body + answer.body


async def test_fields_that_nobody_knows_are_taken_and_named(operator: Client, server_id: str, model: str) -> None:
    """Another agent may send more; a typing error is seen. So is what does not count beside a `server_info`."""
    with Fleet.start(models=[model]) as server:
        answer = await operator.post(flat(server_id, server, weight=2), REGISTER)
        assert "ignored" not in answer.json()
        answer = await operator.post(flat(server_id, server, max_concurent=7, agent={"version": "0.1"}), REGISTER)
        assert (answer.status, sorted(answer.json()["ignored"])) == (200, ["agent", "max_concurent"])
        told = {**nested(server_id, server, models=[model]), "id": server_id, "models": []}
        assert "ignored" not in (await operator.post(told, REGISTER)).json()
        told["server_info"]["wieght"] = 3
        answer = await operator.post({**told, "weight": 3, "x" * 300: 1}, REGISTER)
        assert sorted(answer.json()["ignored"]) == ["server_info.wieght", "weight", "x" * 64]
        assert (await row(operator, server_id))["weight"] == 2
        many = {f"n{number}": None for number in range(1000)}
        assert len((await operator.post(flat(server_id, server, **many), REGISTER)).json()["ignored"]) == 20
        for length, seen in ((900_000, True), (1_100_000, False)):  # longer ones are not searched
            answer = await operator.post(flat(server_id, server, padding="x" * length), REGISTER)
            assert (answer.status, "ignored" in answer.json()) == (200, seen)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ({"weight": 3.0}, {"weight": 3}),
        ({"capabilities": None, "models": None, "services": None, "role": None}, {"capabilities": ["x"], "role": "r"}),
        ({"weight": None, "max_concurrent": None}, {"weight": 5, "max_concurrent": 0}),
        ({"health_endpoint": "health"}, {"health_endpoint": "/health"}),
        ({"health_endpoint": "v1/health?deep=1"}, {"health_endpoint": "/v1/health?deep=1"}),
        ({"health_endpoint": "http://127.0.0.1:9/health"}, {"health_endpoint": "/health"}),
        ({"port": 80, "health_endpoint": "http://127.0.0.1/health"}, {"health_endpoint": "/health"}),
        ({"port": 443, "health_endpoint": "HTTPS://127.0.0.1"}, {"health_endpoint": "/"}),
        ({"hostname": "::1", "health_endpoint": "http://[::1]:9/health"}, {"health_endpoint": "/health"}),
        ({"base_path": "/a", "health_endpoint": "http://127.0.0.1:9/a/health"}, {"health_endpoint": "/health"}),
        ({"base_path": "/a", "health_endpoint": "http://127.0.0.1:9/a"}, {"health_endpoint": "/"}),
        ({"base_path": "/a", "health_endpoint": "/a/health"}, {"health_endpoint": "/a/health"}),
        ({"base_path": "/a/v1", "models_endpoint": "/list"}, {"base_path": "/a", "models_endpoint": "/v1/list"}),
        ({"base_path": "/v1", "models_endpoint": "v1/models"}, {"base_path": "", "models_endpoint": "/v1/models"}),
        (
            {"base_path": "/v1", "health_endpoint": "http://127.0.0.1:9/v1/up"},
            {"base_path": "", "health_endpoint": "/v1/up"},
        ),
        ({"base_path": "/av1", "models_endpoint": "/list"}, {"base_path": "/av1", "models_endpoint": "/list"}),
    ],
)
async def test_what_people_write_is_taken(
    operator: Client, server_id: str, told: dict[str, Any], kept: dict[str, Any]
) -> None:
    """A null says nothing of it; a whole number may have a point; a path needs no slash."""
    from apps.orchestration.models import Server

    first = {**WELL, "id": server_id, "kind": "openai", "capabilities": ["x"], "role": "r", "weight": 5}
    assert (await operator.post(first, REGISTER)).status == 200
    answer = await operator.post({**WELL, "id": server_id, **told}, REGISTER)
    assert answer.status == 200, answer.body
    row = Server.objects.get(server_id=server_id)
    assert {name: getattr(row, name) for name in kept} == kept


async def test_a_base_path_as_clients_have_it_is_taken_without_its_version(
    operator: Client, client: Client, server_id: str, model: str
) -> None:
    """Twice, and it has moved nowhere."""
    with Fleet.start(models=[model]) as server:
        for _ in range(2):
            assert (await operator.post(flat(server_id, server, base_path="/v1"), REGISTER)).status == 200
            await until_models(operator, server_id, [model])
        assert (await client.post(chat(model))).status == 200
    told = (await operator.get(f"/orchestration/events?server_id={server_id}&type=server_registered")).json()
    assert [event["data"]["url"] for event in told["events"]] == [server.url]


async def test_a_base_path_that_is_known_is_asked_for_once(operator: Client, server_id: str) -> None:
    """Where a registration leaves it out, and its pages have whole addresses."""
    from apps.orchestration.models import Server

    told = {**WELL, "id": server_id, "health_endpoint": "http://127.0.0.1:9/a/health"}
    for more in ({"base_path": "/a"}, {}):
        assert (await operator.post({**told, **more}, REGISTER)).status == 200
        row = Server.objects.get(server_id=server_id)
        assert (row.base_path, row.health_endpoint) == ("/a", "/health")
    refused = await operator.post({**told, "health_endpoint": "http://127.0.0.1:9/health"}, REGISTER)
    assert (refused.status, refused.json()["error"]["param"]) == (400, "health_endpoint")
    assert (await operator.post({**told, "base_path": ""}, REGISTER)).status == 200
    assert Server.objects.get(server_id=server_id).health_endpoint == "/a/health"


async def test_embeddings_is_another_word_for_embedding(operator: Client, server_id: str, model: str) -> None:
    told = {**WELL, "id": server_id, "models": [{"name": model, "capabilities": ["embeddings"]}]}
    assert (await operator.post(told, REGISTER)).status == 200
    assert (await operator.get(f"/v1/models/{model}")).json()["citadel"]["capabilities"] == ["embedding"]


async def test_registering_again_changes_what_is_said_and_nothing_else(
    citadel: Instance, operator: Client, server_id: str, model: str
) -> None:
    from apps.orchestration import registry
    from apps.orchestration.models import Event, Server

    told = {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "openai", "models": [model], "api_key": "old"}
    for _ in range(3):
        assert (await operator.post(told, REGISTER)).json()["state"] == "active"
    for _ in range(20):  # others change the registry at the same time
        epoch = registry.epoch()
        await operator.post(told, REGISTER)
        if registry.epoch() == epoch:
            break
    else:
        raise AssertionError("what is the same is written")
    assert [event.type for event in Event.objects.filter(server_id=server_id)] == ["server_registered"]
    await operator.post({}, f"/orchestration/servers/{server_id}/disable")
    Server.objects.filter(server_id=server_id).update(weight=50)
    assert (await operator.post({**told, "role": "new"}, REGISTER)).json()["state"] == "disabled"
    found = Server.objects.get(server_id=server_id)
    assert (found.weight, found.role, found.api_key, found.kind) == (50, "new", "old", "openai")
    moved = {name: value for name, value in told.items() if name not in ("api_key", "kind")}
    await operator.post({**moved, "port": 10}, REGISTER)
    found = Server.objects.get(server_id=server_id)
    assert (found.port, found.kind, found.api_key) == (10, "", ""), "the key for the old address is not for the new"


async def test_two_ids_may_share_an_address_and_one_id_has_one_row(
    citadel: Instance, operator: Client, server_id: str, model: str
) -> None:
    from apps.orchestration.models import Server

    told = {"id": server_id, "hostname": "127.0.0.1", "port": 9, "models": [model]}
    answers = await asyncio.gather(*(operator.post(told, REGISTER) for _ in range(10)))
    assert [answer.status for answer in answers] == [200] * 10
    assert Server.objects.filter(server_id=server_id).count() == 1
    try:
        assert (await operator.post({**told, "id": f"{server_id}-b"}, REGISTER)).status == 200
    finally:
        citadel.remove(f"{server_id}-b")


async def test_a_server_of_another_credential_is_left_to_it(
    citadel: Instance, operator: Client, server_id: str
) -> None:
    from apps.orchestration.models import Server

    told = {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http"}
    assert (await operator.post(told, REGISTER)).status == 200
    other, admin = citadel.key(role="operator"), citadel.key(role="admin")
    beat = f"/orchestration/servers/{server_id}/heartbeat"
    for body, path in (({**told, "hostname": "127.0.0.2"}, REGISTER), ({}, beat)):
        refused = await operator.post(body, path, key=other)
        assert (refused.status, refused.code) == (409, "owned_by_another")
    assert Server.objects.get(server_id=server_id).hostname == "127.0.0.1"
    assert (await operator.post({}, beat, key=admin)).status == 200
    before = Server.objects.get(server_id=server_id).registered_by
    assert (await operator.post({**told, "weight": 5}, REGISTER, key=admin)).status == 200
    changed = Server.objects.get(server_id=server_id)
    assert (changed.weight, changed.registered_by) == (5, before), "who may own all has changed it, and no more"
    assert (await operator.post({}, beat)).status == 200
    assert (await operator.post({**told, "hostname": "127.0.0.2"}, REGISTER, key=admin)).status == 200
    taken = Server.objects.get(server_id=server_id)
    assert (taken.hostname, taken.registered_by) == ("127.0.0.2", admin.split("_")[1])
    assert (await operator.post(told, REGISTER)).status == 409


WELL = {"id": "never", "hostname": "127.0.0.1", "port": 9}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": "list"}, "id"),
        ({"id": 7}, "id"),
        ({"hostname": ...}, "hostname"),
        ({"hostname": "a b"}, "hostname"),
        ({"hostname": "user@host"}, "hostname"),
        ({"hostname": "host/path"}, "hostname"),
        ({"hostname": "host:80"}, "hostname"),
        ({"hostname": "cafe:80"}, "hostname"),
        ({"hostname": "\0"}, "hostname"),
        ({"hostname": "169.254.169.254"}, "hostname"),
        ({"hostname": "::ffff:169.254.169.254"}, "hostname"),
        ({"hostname": "fe80::1"}, "hostname"),
        ({"hostname": "0.0.0.0"}, "hostname"),
        ({"hostname": "8.8.8.8"}, "hostname"),
        ({"hostname": "0xa9.0xfe.0xa9.0xfe"}, "hostname"),
        ({"port": ...}, "port"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": "80"}, "port"),
        ({"scheme": "ftp"}, "scheme"),
        ({"kind": "toaster"}, "kind"),
        ({"weight": 0}, "weight"),
        ({"weight": 1001}, "weight"),
        ({"max_concurrent": -1}, "max_concurrent"),
        ({"capabilities": "business"}, "capabilities"),
        ({"capabilities": [1]}, "capabilities[0]"),
        ({"capabilities": {"": 1}}, "capabilities"),
        ({"capabilities": ["x\0"]}, "capabilities[0]"),
        ({"capabilities": {"x": "\0"}}, "capabilities"),
        ({"services": {"x": "y" * 40_000}}, "services"),
        ({"services": ["x"] * 257}, "services"),
        ({"models": "m"}, "models"),
        ({"models": [""]}, "models[0]"),
        ({"models": ["m\0"]}, "models[0]"),
        ({"models": [{"name": "m", "context_length": 0}]}, "models[0].context_length"),
        ({"role": "x" * 101}, "role"),
        ({"role": "\0"}, "role"),
        ({"api_key": "a\r\nb"}, "api_key"),
        ({"base_path": "no/slash"}, "base_path"),
        ({"base_path": "/x?y"}, "base_path"),
        ({"health_endpoint": "http://127.0.0.1/health"}, "health_endpoint"),
        ({"health_endpoint": "ftp://127.0.0.1:9/health"}, "health_endpoint"),
        ({"base_path": "/a", "health_endpoint": "http://127.0.0.1:9/health"}, "health_endpoint"),
        ({"base_path": "/a", "health_endpoint": "http://127.0.0.1:9/ab/health"}, "health_endpoint"),
        ({"weight": 0.5}, "weight"),
        ({"weight": 1000.5}, "weight"),
        ({"weight": "1"}, "weight"),
        ({"weight": 1e300}, "weight"),
        ({"id": "register"}, "id"),
        ({"health_endpoint": "http://elsewhere/health"}, "health_endpoint"),
        ({"health_endpoint": "http://127.0.0.1:99/health"}, "health_endpoint"),
        ({"models_endpoint": "/a b"}, "models_endpoint"),
        ({"server_info": {"hostname": "127.0.0.1", "port": 9}, "id": None}, "server_info.id"),
        ({"server_info": {"server_id": "x", "port": 9}}, "server_info.hostname"),
        ({"server_info": {"server_id": "x", "hostname": "127.0.0.1", "port": 0}}, "server_info.port"),
        ({"server_info": 7}, "server_info"),
    ],
)
async def test_a_wrong_field_is_named(operator: Client, change: dict[str, Any], param: str) -> None:
    from apps.orchestration.models import Server

    body = {name: value for name, value in {**WELL, **change}.items() if value is not ...}
    refused = await operator.post(body, REGISTER)
    assert refused.status == 400, refused.body
    assert refused.json()["error"]["param"] == param, refused.body
    assert not Server.objects.filter(server_id__in=["never", "x", "list"]).exists()


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"7", b"null", b"{", b"\xff"])
async def test_a_body_that_is_none(operator: Client, body: bytes) -> None:
    assert (await operator.post(body, REGISTER)).status == 400


async def test_own_databases_are_not_servers(citadel: Instance, operator: Client) -> None:
    """The run's own listen on sockets by path, so another Citadel's settings say where they are."""
    from apps.orchestration.models import Server
    from citadel import addresses, config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(addresses, "own_services", lambda _config: iter([("127.0.0.1", 7777)]))
        from django.core.exceptions import ValidationError

        with pytest.raises(ValidationError, match="may not be called"):
            Server(server_id="x", hostname="localhost", port=7777).full_clean()
        Server(server_id="x", hostname="localhost", port=7778).full_clean()
    assert config.load().home == citadel.home


def test_no_name_is_looked_up_while_a_server_is_put_into_the_registry(
    citadel: Instance, server_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver that is away takes seconds for each, and others would wait for the row and for the thread."""
    from citadel.addresses import Addresses

    looked_up: list[str] = []
    monkeypatch.setattr(Addresses, "check", lambda _self, host, _port: looked_up.append(host))
    for host in ("some.test", "other.test"):
        _register(server_id, hostname=host)
    assert looked_up == []


async def test_a_citadel_in_its_own_fleet_is_shut_out(citadel: Instance, operator: Client, server_id: str) -> None:
    host, port = citadel.url.removeprefix("http://").split(":")
    told = {"id": server_id, "hostname": host, "port": int(port), "api_key": citadel.admin_key}
    assert (await operator.post(told, REGISTER)).status == 200
    begun = time.monotonic()
    while (await row(operator, server_id))["state"] != "disabled":
        assert time.monotonic() - begun < 5 + HELD_UP
        await asyncio.sleep(0.05)
    assert (await row(operator, server_id))["models"] == []


@pytest.mark.parametrize("path", ["/v1/models", "/health/live", LIST, "/metrics"])
async def test_what_comes_back_to_itself_is_refused_everywhere(citadel: Instance, operator: Client, path: str) -> None:
    from citadel import config, hop

    own = hop.mark(config.load().secret)
    for via in (own, f"another, {own}"):
        assert (await operator.get(path, x_citadel_via=via)).code == "loop_detected"
    assert (await operator.get(path, x_citadel_via="another")).status in (200, 403)


async def test_what_a_citadel_in_the_fleet_has_only_by_this_one_goes_and_others_are_told_by_whom_the_rest_is_had(
    citadel: Instance, operator: Client, server_id: str, model: str
) -> None:
    from apps.orchestration.models import Server
    from apps.orchestration.registry import add, refresh
    from citadel import config, hop

    own = hop.mark(config.load().secret)

    async def through(**headers: str) -> list[list[str]] | None:
        details = (await operator.get(f"/v1/models/{model}", **headers)).json().get("citadel", {})
        return details.get("through")

    def tell(peer: Fleet, *ways: list[str]) -> None:
        rows = {"data": [{"id": model, "citadel": {"servers": ["s"], "through": ways}}]}
        peer.behave()
        peer.behave({"json_is": {"value": json.dumps(rows)}}, path="/v1/models")
        refresh(Server.objects.get(server_id=server_id))
        citadel.settle()

    with Fleet.start(models=[]) as peer, Fleet.start(models=[model]) as server:
        add(server_id, peer.url, kind="citadel")
        tell(peer, ["b"])
        assert await through(x_citadel_via="another") == [[own, "b"]]
        assert await through() is None
        tell(peer, ["b", "c"], ["b", own])
        assert await through(x_citadel_via="another") == [[own, "b", "c"]]
        [listed] = [
            row for row in (await operator.get("/v1/models", x_citadel_via="x")).json()["data"] if row["id"] == model
        ]
        assert listed["citadel"]["through"] == [[own, "b", "c"]]
        with citadel.registered(server.url, [model]):
            assert await through(x_citadel_via="another") == [[own]]
        tell(peer, ["b", own])
        assert (await operator.get(f"/v1/models/{model}")).status == 404


ROLES = {
    "admin": (200, 200, 200, 200, 200),
    "operator": (200, 200, 200, 200, 200),
    "server": (200, 200, 403, 200, 403),
    "auditor": (403, 403, 403, 403, 200),
    "developer": (403, 403, 403, 403, 403),
    None: (401, 401, 401, 401, 401),
}


@pytest.mark.parametrize("role", ROLES)
async def test_who_may_do_what(citadel: Instance, operator: Client, server_id: str, role: str | None) -> None:
    """Register, say that it lives, drain, take out; and see."""
    key = citadel.key(role=role) if role else ""
    place = f"/orchestration/servers/{server_id}"
    told = {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http"}
    register, beat, operate, remove, see = ROLES[role]
    for path in (REGISTER, "/v1/servers"):
        assert (await operator.post(told, path, key=key)).status == register
    citadel.settle()
    if register != 200:
        await operator.post(told, REGISTER)
    assert (await operator.post(b"", f"{place}/heartbeat", key=key)).status == beat
    for verb, state in (("drain", "draining"), ("disable", "disabled"), ("enable", "active")):
        answer = await operator.post(b"", f"{place}/{verb}", key=key)
        assert answer.status == operate
        if operate == 200:
            assert answer.json()["state"] == state == (await row(operator, server_id))["state"]
    for path in (LIST, place, f"{place}/health", "/v1/servers", f"/v1/servers/{server_id}"):
        assert (await operator.get(path, key=key)).status == see
    assert (await operator.ask("DELETE", place, key=key)).status == remove
    assert (server_id in (await operator.get(LIST)).json()["servers"]) is (remove != 200)


async def test_draining_takes_traffic_off_and_enabling_gives_it_back(
    operator: Client, client: Client, server_id: str, model: str
) -> None:
    from apps.orchestration.models import Event

    with Fleet.start(models=[model]) as server:
        await operator.post(flat(server_id, server, models=[model]), REGISTER)
        for verb, status in (("drain", 503), ("drain", 503), ("enable", 200), ("disable", 503), ("enable", 200)):
            assert (await operator.post(b"", f"/orchestration/servers/{server_id}/{verb}")).status == 200
            assert (await client.post(chat(model))).status == status
        told = [(one.type, one.data["state"]) for one in Event.objects.filter(server_id=server_id).order_by("id")]
        assert told == [
            ("server_registered", "active"),
            ("server_drained", "draining"),
            ("server_enabled", "active"),
            ("server_drained", "disabled"),
            ("server_enabled", "active"),
        ]


async def test_enabling_a_server_takes_back_that_it_has_departed(
    citadel: Instance, operator: Client, server_id: str
) -> None:
    """And its silence too: heartbeats are asked for again from its next one on."""
    import redis

    from apps.orchestration.health.board import DEPARTED, SAY
    from apps.orchestration.health.loads import HEARTBEATS

    await operator.post({"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http"}, REGISTER)
    with redis.Redis.from_url(citadel.redis_url) as state:
        state.hset(HEARTBEATS, server_id, '{"at":1}')
        state.sadd(DEPARTED, server_id)
        state.eval(SAY.text, 0, server_id, "heartbeat", "unhealthy", "departed", "{}", "[]", "-1")
        assert (await row(operator, server_id))["health_reason"] == "departed"
        assert (await operator.post(b"", f"/orchestration/servers/{server_id}/enable")).status == 200
        assert (await row(operator, server_id))["health_reason"] != "departed"
        assert not state.hexists(HEARTBEATS, server_id)
        assert not state.sismember(DEPARTED, server_id)


@pytest.mark.parametrize("verb", ["drain", "disable"])
async def test_what_is_taken_out_is_the_address_that_was_meant(operator: Client, server_id: str, verb: str) -> None:
    await operator.post({"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http"}, REGISTER)
    place = f"/orchestration/servers/{server_id}/{verb}"
    answer = await operator.post({"url": "http://127.0.0.1:10"}, place)
    assert (answer.status, answer.code) == (409, "server_has_moved")
    assert (await row(operator, server_id))["state"] == "active"
    assert (await operator.post({"url": "http://127.0.0.1:9"}, place)).status == 200


async def test_whose_entry_is_anothers_is_told_so_by_its_heartbeat(
    citadel: Instance, operator: Client, server_id: str
) -> None:
    """As where two have one name. Whoever has just moved is heard by workers that have not heard of it yet."""
    told = {"id": server_id, "hostname": "127.0.0.1", "kind": "http"}
    beat = f"/orchestration/servers/{server_id}/heartbeat"
    first = (await operator.post({**told, "port": 9}, REGISTER)).json()["url"]
    assert first == "http://127.0.0.1:9"
    assert (await operator.post({"url": first}, beat)).status == 200
    second = (await operator.post({**told, "port": 10}, REGISTER)).json()["url"]
    for _ in range(10):
        assert (await operator.post({"url": second}, beat)).json()["url"] == second
    citadel.settle()
    refused = await operator.post({"url": first}, beat)
    assert (refused.status, refused.code) == (409, "server_has_moved")
    assert second in refused.json()["error"]["message"]
    assert (await operator.post({}, beat)).status == 200, "who does not say where it is is heard all the same"


async def test_a_heartbeat_is_shown_and_forgotten_with_its_server(operator: Client, server_id: str) -> None:
    place = f"/orchestration/servers/{server_id}"
    told = {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http"}
    assert (await operator.post({}, f"{place}/heartbeat")).code == "server_not_found"
    await operator.post(told, REGISTER)
    assert (await row(operator, server_id))["last_seen"] is None
    metrics = {"cpu": 0.5, "memory": 1, "gpu": 0, "in_flight": 3, "queue": 2}
    answer = (await operator.post({"load_metrics": metrics, "other": 1}, f"{place}/heartbeat")).json()
    url = "http://127.0.0.1:9"
    assert answer == {"status": "ok", "server_id": server_id, "state": "active", "url": url, "heartbeat_interval": 30}
    found = await row(operator, server_id)
    assert found["load_metrics"] == metrics
    assert abs(time.time() - datetime.fromisoformat(found["last_seen"]).timestamp()) < 5
    health = (await operator.get(f"{place}/health")).json()
    assert set(health) == {
        "server_id",
        "status",
        "source",
        "reason",
        "state",
        "last_seen",
        "consecutive_failures",
        "consecutive_successes",
        "response_time_ms",
        "load_metrics",
    }
    assert (health["load_metrics"], health["status"]) == (metrics, "healthy")
    await operator.ask("DELETE", place)
    for path in (place, f"{place}/health"):
        assert (await operator.get(path)).code == "server_not_found"
    await operator.post(told, REGISTER)
    assert (await row(operator, server_id))["load_metrics"]["cpu"] is None


@pytest.mark.parametrize(
    ("metrics", "param"),
    [
        ({"cpu": 1.01}, "load_metrics.cpu"),
        ({"memory": -0.1}, "load_metrics.memory"),
        ({"gpu": "half"}, "load_metrics.gpu"),
        ({"in_flight": 1.5}, "load_metrics.in_flight"),
        ({"queue": -1}, "load_metrics.queue"),
        ([], "load_metrics"),
    ],
)
async def test_a_heartbeat_that_makes_no_sense(operator: Client, metrics: Any, param: str) -> None:
    refused = await operator.post({"load_metrics": metrics}, "/orchestration/servers/any/heartbeat")
    assert (refused.status, refused.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("verb", ["drain", "enable", "disable", "heartbeat"])
async def test_nobody_of_that_name(operator: Client, verb: str) -> None:
    for name in ("nobody", "x" * 300, "%00", "ü"):
        answer = await operator.post(b"", f"/orchestration/servers/{name}/{verb}")
        assert (answer.status, answer.code) == (404, "server_not_found"), name
        assert len(answer.body) < 500
    assert (await operator.ask("DELETE", "/orchestration/servers/nobody")).code == "server_not_found"


async def test_older_names(operator: Client, server_id: str) -> None:
    told = {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http"}
    assert (await operator.post(told, "/v1/servers")).json()["status"] == "registered"
    assert (await operator.get("/v1/servers")).json()["servers"][server_id]["kind"] == "http"
    assert (await operator.get(f"/v1/servers/{server_id}")).json()["server_id"] == server_id
    assert (await operator.get("/v1/servers/nobody")).code == "server_not_found"
    assert (await operator.get("/v1/health")).json()["status"] in ("healthy", "degraded")


async def test_while_the_database_is_away_the_registry_says_so(tmp_path: Path) -> None:
    """Its connections are refused, as they are while it starts: of a Citadel of its own, for others need theirs."""
    with running(tmp_path / "home", {"CITADEL_DEMO_FLEET": "0"}) as instance:
        headers = {"authorization": f"Bearer {instance.admin_key}"}
        async with aiohttp.ClientSession(instance.url, headers=headers) as session:
            with _no_connections(instance.database_url):
                for answer in (
                    await Client(session).get(LIST),
                    await Client(session).get("/orchestration/servers/any"),
                    await Client(session).post(WELL, REGISTER),
                    await Client(session).post(b"", "/orchestration/servers/any/drain"),
                ):
                    assert (answer.status, answer.code) == (503, "unavailable")
                    assert answer.headers["retry-after"] == "5"
            assert (await Client(session).get(LIST)).status == 200


@contextmanager
def _no_connections(database_url: str) -> Iterator[None]:
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(database_url, dbname="template1", autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            yield
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


@pytest.mark.parametrize(
    ("path", "server_id"),
    [
        ("/orchestration/servers/a/heartbeat", "a"),
        ("/orchestration/servers/a.b-c_d/heartbeat", "a.b-c_d"),
        ("/orchestration/servers/a/b/heartbeat", ""),
        ("/orchestration/servers/heartbeat", ""),
        ("/orchestration/servers//heartbeat", ""),
        ("/orchestration/servers/a/heartbeat/", ""),
        ("/v1/orchestration/servers/a/heartbeat", ""),
    ],
)
def test_the_short_way_is_for_heartbeats_alone(path: str, server_id: str) -> None:
    from apps.orchestration.servers_api import heartbeat_from

    assert heartbeat_from(path) == server_id


@pytest.mark.parametrize("verbs", [["enable"], ["disable", "enable"], ["drain", "enable"]])
@pytest.mark.parametrize("kind", [None, "openai"])
async def test_a_server_that_nobody_has_approved_is_not_called(
    operator: Client, server_id: str, model: str, kind: str | None, verbs: list[str]
) -> None:
    """Asked for its models when it is enabled, though it has said what it is."""
    from apps.orchestration.models import Server

    with Fleet.start(models=[model]) as server:
        Server.objects.create(server_id=server_id, hostname="127.0.0.1", port=server.port, state="pending")
        assert (await operator.post(flat(server_id, server, kind=kind), REGISTER)).json()["state"] == "pending"
        await asyncio.sleep(1)
        assert not server.connections()
        for verb in verbs:
            assert (await operator.post(b"", f"/orchestration/servers/{server_id}/{verb}")).status == 200
        await until_models(operator, server_id, [model])


async def test_a_disabled_server_that_moves_is_not_called(operator: Client, server_id: str, model: str) -> None:
    """Nobody has approved its new address, nor its first one where it was disabled while it waited."""
    from apps.orchestration.models import Server

    with Fleet.start(models=[model]) as server:
        Server.objects.create(server_id=server_id, hostname="127.0.0.1", port=9, state="pending")
        assert (await operator.post(b"", f"/orchestration/servers/{server_id}/disable")).status == 200
        assert (await operator.post(flat(server_id, server, api_key="k"), REGISTER)).json()["state"] == "disabled"
        await asyncio.sleep(1)
        assert not server.connections()
        assert (await operator.post(b"", f"/orchestration/servers/{server_id}/enable")).status == 200
        await until_models(operator, server_id, [model])


def test_what_was_found_at_an_address_is_not_found_at_another(citadel: Instance, server_id: str) -> None:
    """What is named comes along."""
    from apps.orchestration import registry
    from apps.orchestration.dialects import FoundModel
    from apps.orchestration.models import Server

    _register(server_id, kind="openai", models=["named"])
    registry.keep_models(Server.objects.get(server_id=server_id), [FoundModel("found"), FoundModel("named")])
    assert _register(server_id, kind="openai", role="x").models == ["found", "named"]
    assert _register(server_id, kind="openai", port=10).models == ["named"]


def test_a_host_is_the_same_in_any_case(citadel: Instance, server_id: str) -> None:
    _register(server_id, approval=True, hostname="LocalHost", kind="openai", api_key="k")
    again = _register(server_id, approval=True, hostname="localhost", role="x")
    assert (again.server.kind, again.server.api_key, again.server.role) == ("openai", "k", "x")


MOVES: list[dict[str, Any]] = [
    {"port": 11},
    {"hostname": "127.0.0.2"},
    {"scheme": "https"},
    {"base_path": "/other"},
]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("before", ["active", "draining", "disabled"])
def test_what_was_approved_is_an_address(citadel: Instance, server_id: str, before: str, move: dict[str, Any]) -> None:
    """Where servers need approval, one that moves waits for it again, unless an operator has taken it out; whatever
    else it says anew it may say.
    """
    from apps.orchestration import registry
    from apps.orchestration.models import Event, Server

    def register(approval: bool, **more: Any) -> str:
        return _register(server_id, approval=approval, **more).server.state

    assert register(True) == "pending"
    registry.set_state(server_id, before, "an operator")
    assert register(True, role="x", weight=3) == before
    assert register(False, port=10) == before
    assert register(True, port=10, kind="vllm", api_key="k") == before
    after = "disabled" if before == "disabled" else "pending"
    assert register(True, **{"port": 10, **move}) == after
    row = Server.objects.get(server_id=server_id)
    assert (row.state, row.kind, row.api_key) == (after, "", ""), "the key for the old address is not for the new"
    *_, stopped, moved = Event.objects.filter(server_id=server_id).order_by("id")
    assert (moved.type, moved.data["state"], moved.data["url"]) == ("server_registered", after, row.url)
    if after != before:
        assert (stopped.data["state"], stopped.data["before"]) == (after, before)


async def test_what_is_approved_is_the_address_that_was_looked_at(operator: Client, server_id: str) -> None:
    """A server that waits may move in between: each move is told, and who says what he expects gets nothing else."""
    from apps.orchestration.models import Event

    enable, first, second = f"/orchestration/servers/{server_id}/enable", "http://127.0.0.1:9", "http://127.0.0.1:10/x"
    _register(server_id, approval=True, kind="http")
    assert (await row(operator, server_id))["url"] == first
    _register(server_id, approval=True, kind="http", port=10, base_path="/x")
    told = Event.objects.filter(server_id=server_id).order_by("id").values_list("type", "data__state", "data__url")
    assert list(told) == [("server_registered", "pending", first), ("server_registered", "pending", second)]
    refused = await operator.post({"url": first}, enable)
    assert (refused.status, refused.code) == (409, "server_has_moved")
    assert refused.json()["error"]["param"] == "url"
    assert second in refused.json()["error"]["message"]
    assert (await row(operator, server_id))["state"] == "pending"
    assert (await operator.post({"url": 7}, enable)).status == 400
    assert (await operator.post({"url": second}, enable)).json()["state"] == "active"
    assert (await operator.post({"url": first}, enable)).status == 409


async def test_a_servers_key_is_for_its_own_servers(citadel: Instance, operator: Client, server_id: str) -> None:
    """What operators or others have put in it neither speaks for nor takes out."""
    from apps.orchestration.models import Server

    key, told = citadel.key(role="server"), {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "http"}
    await operator.post(told, REGISTER)
    place = f"/orchestration/servers/{server_id}"
    for whose, reason in (("another", "registered by another credential"), ("", "put in by an operator")):
        await asyncio.to_thread(Server.objects.filter(server_id=server_id).update, registered_by=whose)
        citadel.settle()
        refused = await operator.post(told, REGISTER, key=key)
        assert refused.code == "owned_by_another"
        assert reason in refused.json()["error"]["message"]
        assert (await operator.post({}, f"{place}/heartbeat", key=key)).code == "owned_by_another"
        assert (await operator.ask("DELETE", place, key=key)).status == 403
    for path in ("/orchestration/events", "/metrics", "/v1/models"):
        assert (await operator.get(path, key=key)).status == 403


def test_a_machines_key_fills_no_registry(citadel: Instance, server_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has as many as it may it takes care of those; an operator's is not bound."""
    from apps.orchestration.registry import entries
    from citadel.errors import Conflict

    monkeypatch.setattr(entries, "MOST_SERVERS", 1)
    _register(server_id, by="server")
    _register(server_id, by="server", weight=2)
    with pytest.raises(Conflict, match="registered 1 servers") as refused:
        _register("another", by="server")
    assert refused.value.code == "too_many_servers"
    try:
        assert _register("another", by="operator").server.server_id == "another"
    finally:
        citadel.remove("another")


def test_who_has_departed_makes_room(citadel: Instance, server_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each that comes; not what an operator has disabled, nor where departed servers are never forgotten."""
    import redis

    from apps.orchestration.health.board import DEPARTED
    from apps.orchestration.models import Server
    from apps.orchestration.registry import entries
    from citadel import config
    from citadel.errors import Conflict

    monkeypatch.setattr(entries, "MOST_SERVERS", 3)
    names = [f"{server_id}-{number}" for number in range(4)]
    tree = config.load()
    assert tree.redis_url
    board = redis.Redis.from_url(tree.redis_url)
    try:
        for name in names[:3]:
            _register(name, by="server", key="k-room")
        board.sadd(DEPARTED, names[0], names[1])
        Server.objects.filter(server_id=names[0]).update(state=Server.State.DISABLED)
        never = tree.model_copy(update={"registry": tree.registry.model_copy(update={"forget_departed": 0})})
        with monkeypatch.context() as patch:
            patch.setattr(entries.config, "load", lambda: never)
            with pytest.raises(Conflict):
                _register(names[3], by="server", key="k-room")
        _register(names[3], by="server", key="k-room")
        left = Server.objects.filter(registered_by="k-room").values_list("server_id", flat=True)
        assert set(left) == {names[0], names[2], names[3]}
        assert not board.sismember(DEPARTED, names[1])
        with pytest.raises(Conflict):
            _register("another", by="server", key="k-room")
    finally:
        board.srem(DEPARTED, *names)
        board.close()
        Server.objects.filter(server_id__in=names).delete()


def _register(server_id: str, *, approval: bool = False, by: str = "operator", key: str = "key", **more: Any) -> Any:
    """Registers a server as the API does, under another setting perhaps than the run's Citadel has."""
    from apps.orchestration import registry
    from apps.orchestration.registration import Registration
    from citadel.caller import Caller

    told = {"id": server_id, "hostname": "127.0.0.1", "port": 9, **more}
    caller = Caller(key, "k", "team", by, None)
    return registry.register(Registration.read(json.dumps(told).encode()), caller, approval=approval)


async def test_who_may_probe_and_what(citadel: Instance, client: Client, model: str) -> None:
    """What a probe finds decides where requests go; and nothing is called that nobody has approved."""
    from apps.orchestration.models import Server

    with Fleet.start(models=[model]) as server, citadel.registered(server.url, [model]) as server_id:
        path = f"/orchestration/servers/{server_id}/health?probe=true"
        assert (await client.get(path, key=citadel.key(role="auditor"))).status == 403
        assert (await client.get(path.partition("?")[0], key=citadel.key(role="auditor"))).status == 200
        operator = citadel.key(role="operator")
        assert (await client.get(path, key=operator)).json()["status"] == "healthy"
        server.kill()
        assert (await client.get(path, key=operator)).json()["consecutive_failures"] == 1
        for state in ("pending", "disabled"):
            Server.objects.filter(server_id=server_id).update(state=state)
            assert (await client.get(path, key=operator)).status == 409


async def test_a_server_that_the_worker_does_not_know_yet_is_not_probed(
    citadel: Instance, operator: Client, server_id: str
) -> None:
    """As while it can't read what has changed."""
    from apps.orchestration.models import Server

    path = f"/orchestration/servers/{server_id}/health?probe=true"
    with psycopg.connect(citadel.database_url) as other:
        other.execute("LOCK TABLE orchestration_alias IN ACCESS EXCLUSIVE MODE")
        await asyncio.to_thread(Server.objects.create, server_id=server_id, hostname="127.0.0.1", port=9)
        refused = await operator.get(path)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    citadel.settle()
    assert (await operator.get(path)).status == 200


async def test_many_models_are_written_many_at_once(operator: Client, server_id: str) -> None:
    """Each statement raises the epoch, which all who change the registry wait for."""
    from apps.orchestration.models import ServedModel
    from apps.orchestration.registry import epoch

    names = [f"{server_id}-{number}" for number in range(1200)]
    body = {"id": server_id, "hostname": "127.0.0.1", "port": 9, "kind": "openai"}
    for length in (None, 4096):
        models = [{"name": name, "context_length": length} for name in [*names, names[0]]]
        before = await asyncio.to_thread(epoch)
        assert (await operator.post({**body, "models": models}, REGISTER)).status == 200
        assert await asyncio.to_thread(epoch) - before < 200  # others change the registry beside this
        kept = ServedModel.objects.filter(server__server_id=server_id, named_by="registration", context_length=length)
        assert {row.name async for row in kept} == {*names}
