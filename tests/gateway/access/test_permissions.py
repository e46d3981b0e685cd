"""What a key may do: its models, and what its role allows."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from citadel.api import openapi_document
from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, COMPLETIONS, EMBEDDINGS, Client
from tests.instance import Instance

Start = Callable[..., Fleet]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    COMPLETIONS: {"prompt": "Hello"},
    EMBEDDINGS: {"input": "Hello"},
}


async def test_a_key_sees_and_uses_its_models_alone(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    mine, other = fleet(f"{model}-mine"), fleet(f"{model}-other")
    key = citadel.key(models=[f"{model}-mine", "not-there-yet"])
    listed = (await client.get("/v1/models", key=key)).json()["data"]
    assert [row["id"] for row in listed] == [f"{model}-mine"]
    assert (await client.get(f"/v1/models/{model}-mine", key=key)).status == 200
    assert (await client.get(f"/v1/models/{model}-other", key=key)).code == "model_not_found"
    for path, body in BODIES.items():
        assert (await client.post({"model": f"{model}-mine", **body}, path, key=key)).status == 200
        refused = await client.post({"model": f"{model}-other", **body}, path, key=key)
        assert (refused.status, refused.code) == (404, "model_not_found")
        absent = await client.post({"model": f"{model}-utter", **body}, path, key=key)  # no less like the key's own
        assert refused.body.replace(b"-other", b"-utter") == absent.body
    assert len(mine.calls()) == len(BODIES)
    assert not other.calls()


@pytest.mark.parametrize("said", ["", ":latest"])
async def test_a_key_for_a_model_by_either_of_its_names(
    citadel: Instance, fleet: Start, model: str, client: Client, said: str
) -> None:
    """Ollama's habit: where nobody says a tag, `latest` is meant."""
    fleet(f"{model}:latest", kind="ollama")
    key = citadel.key(models=[f"{model}{said}"])
    assert [row["id"] for row in (await client.get("/v1/models", key=key)).json()["data"]] == [model]
    for name in (model, f"{model}:latest"):
        assert (await client.post({"model": name, **BODIES[CHAT]}, key=key)).status == 200


@pytest.mark.parametrize("names", ["5", "true", '"MODEL"', '[["MODEL"]]', '{"MODEL": 1}', "{}"])
async def test_a_restriction_that_makes_no_sense_allows_nothing(
    citadel: Instance, fleet: Start, model: str, client: Client, names: str
) -> None:
    """And holds up nobody else's keys."""
    from apps.gateway.models import Key

    fleet(model)
    key = citadel.key(models=[model])
    Key.objects.filter(key_id=key.split("_")[1]).update(allowed_models=json.loads(names.replace("MODEL", model)))
    citadel.settle()
    assert (await client.post({"model": model, **BODIES[CHAT]}, key=key)).code == "model_not_found"
    assert (await client.post({"model": model, **BODIES[CHAT]}, key=citadel.key())).status == 200


async def test_a_cached_answer_is_no_way_round(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    team = f"team-{model}"
    body = {"model": model, **BODIES[CHAT], "seed": 1}
    assert (await client.post(body, key=citadel.key(team))).cache == "miss"
    assert (await client.post(body, key=citadel.key(team, models=["another"]))).code == "model_not_found"


async def test_an_alias_may_be_used_by_who_may_use_it_or_its_model(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    from apps.orchestration.models import Alias

    fleet(model)
    alias = Alias.objects.create(name=f"alias-{model}", model=model)
    try:
        citadel.settle()
        for models, status in (([alias.name], 200), ([model], 200), (["another"], 404)):
            answer = await client.post({"model": alias.name, **BODIES[CHAT]}, key=citadel.key(models=models))
            assert answer.status == status
        [row] = (await client.get("/v1/models", key=citadel.key(models=[alias.name]))).json()["data"]
        assert (row["id"], row["citadel"]["alias_of"]) == (alias.name, model)
    finally:
        alias.delete()


USERS, SEERS = {"admin", "operator", "developer", "owner", "member"}, {"admin", "operator", "auditor"}
OPERATORS, ADMINS = {"admin", "operator"}, {"admin"}
REGISTRARS = {*OPERATORS, "server"}
KEY_SEERS, KEY_MANAGERS = {*SEERS, "owner", "member", "viewer"}, {"admin", "owner"}
EVERYBODY = {*USERS, *SEERS, *REGISTRARS, *KEY_SEERS, "nobody"}
WHO_MAY = {
    "POST /v1/chat/completions": USERS,
    "POST /v1/completions": USERS,
    "POST /v1/embeddings": USERS,
    "GET /v1/models": USERS,
    "GET /v1/models/{model_id}": USERS,
    "POST /orchestration/servers/register": REGISTRARS,
    "GET /orchestration/servers/list": SEERS,
    "GET /orchestration/servers/{server_id}": SEERS,
    "DELETE /orchestration/servers/{server_id}": REGISTRARS,
    "GET /orchestration/servers/{server_id}/health": SEERS,
    "POST /orchestration/servers/{server_id}/heartbeat": REGISTRARS,
    "POST /orchestration/servers/{server_id}/drain": OPERATORS,
    "POST /orchestration/servers/{server_id}/enable": OPERATORS,
    "POST /orchestration/servers/{server_id}/disable": OPERATORS,
    "GET /health/live": EVERYBODY,
    "GET /health/ready": EVERYBODY,
    "GET /health/": EVERYBODY,
    "GET /health/detailed": EVERYBODY,
    "GET /health/enterprise": EVERYBODY,
    "GET /metrics": SEERS,
    "GET /orchestration/events": SEERS,
    "POST /orchestration/failover/{server_id}": OPERATORS,
    "POST /orchestration/route/explain": USERS,
    "POST /orchestration/workload/distribute": USERS,
    "DELETE /orchestration/workload/{request_id}": USERS,
    "GET /orchestration/webhooks": SEERS,
    "POST /orchestration/webhooks": OPERATORS,
    "GET /orchestration/webhooks/{subscription_id}": SEERS,
    "PATCH /orchestration/webhooks/{subscription_id}": OPERATORS,
    "DELETE /orchestration/webhooks/{subscription_id}": OPERATORS,
    "POST /orchestration/webhooks/{subscription_id}/rotate": OPERATORS,
    "POST /orchestration/webhooks/{subscription_id}/replay": OPERATORS,
    "GET /orchestration/webhooks/{subscription_id}/deliveries": SEERS,
    "POST /orchestration/webhooks/{subscription_id}/deliveries/{delivery_id}/replay": OPERATORS,
    "GET /management/models/list": SEERS,
    "POST /management/models/preload": OPERATORS,
    "GET /management/servers/status": SEERS,
    "POST /management/cache/clear": OPERATORS,
    "GET /management/stats": SEERS,
    "POST /api/v1/auth/token": EVERYBODY - {"nobody"},
    # Who asks these proves it in a form, by a client's id and secret, so that a body which is none is told first.
    "POST /api/v1/oauth/token": EVERYBODY,
    "POST /api/v1/oauth/introspect": EVERYBODY,
    "POST /api/v1/oauth/revoke": EVERYBODY,
    "GET /.well-known/oauth-authorization-server": EVERYBODY,
    "GET /api/v1/keys": KEY_SEERS,
    "POST /api/v1/keys": KEY_MANAGERS,
    "GET /api/v1/keys/{key_id}": KEY_SEERS,
    "PATCH /api/v1/keys/{key_id}": KEY_MANAGERS,
    "DELETE /api/v1/keys/{key_id}": KEY_MANAGERS,
    "POST /api/v1/keys/{key_id}/rotate": KEY_MANAGERS,
    "GET /api/v1/teams": KEY_SEERS,
    "POST /api/v1/teams": ADMINS,
    "GET /api/v1/teams/{team}": KEY_SEERS,
    "PATCH /api/v1/teams/{team}": ADMINS,
    "GET /api/v1/teams/{team}/members": KEY_SEERS,
    "PUT /api/v1/teams/{team}/members/{user}": ADMINS,
    "DELETE /api/v1/teams/{team}/members/{user}": ADMINS,
    "GET /api/v1/budgets": KEY_SEERS,
    "POST /api/v1/budgets": KEY_MANAGERS,
    "GET /api/v1/budgets/{budget_id}": KEY_SEERS,
    "PATCH /api/v1/budgets/{budget_id}": KEY_MANAGERS,
    "DELETE /api/v1/budgets/{budget_id}": KEY_MANAGERS,
    "GET /api/v1/prices": EVERYBODY - {"nobody"},
    "GET /api/v1/prices/{model}": EVERYBODY - {"nobody"},
    "PUT /api/v1/prices/{model}": ADMINS,
    "DELETE /api/v1/prices/{model}": ADMINS,
    "GET /api/v1/usage": KEY_SEERS,
    "GET /webhooks": SEERS,
    "POST /webhooks/alertmanager": OPERATORS,
    "POST /webhooks/server_status": OPERATORS,
    "POST /webhooks/{webhook_type}": OPERATORS,
    "GET /webhooks/alertmanager": SEERS,
    "GET /webhooks/server_status": SEERS,
    "GET /webhooks/{webhook_type}": SEERS,
}


def test_the_table_says_of_every_address_who_may() -> None:
    paths = json.loads(openapi_document())["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == WHO_MAY.keys()


@pytest.mark.parametrize("role", sorted(EVERYBODY))
async def test_each_role_may_what_the_table_says(citadel: Instance, client: Client, role: str) -> None:
    """Who may is told what is wrong with a request that can do nothing, who may not is told that alone."""
    client.session.headers.pop("authorization")
    key, refusal = (None, 401) if role == "nobody" else (citadel.key(role=role), 403)
    wrong = {}
    for address, roles in WHO_MAY.items():
        method, path = re.sub(r"{\w+}", "nothing", address).split()
        status = (await client.ask(method, path, data=None if method == "GET" else b'{"all": false}', key=key)).status
        if (status in (401, 403)) is (role in roles) or (role not in roles and status != refusal):
            wrong[address] = status
    assert wrong == {}


@pytest.mark.parametrize(
    ("role", "inference", "metrics"),
    [
        ("admin", 200, 200),
        ("operator", 200, 200),
        ("server", 403, 403),
        ("auditor", 403, 200),
        ("developer", 200, 403),
        ("member", 200, 403),
        ("viewer", 403, 403),
    ],
)
async def test_roles(
    citadel: Instance, fleet: Start, model: str, client: Client, role: str, inference: int, metrics: int
) -> None:
    server, key = fleet(model), citadel.key(role=role)
    for path, body in BODIES.items():
        answer = await client.post({"model": model, **body}, path, key=key)
        assert answer.status == inference
        if inference == 403:
            assert (await client.get("/v1/models", key=key)).code == "forbidden"
            assert answer.json()["error"] == {
                "message": f"This needs the permission 'models.use', which the role '{role}' does not have.",
                "type": "permission_error",
                "param": None,
                "code": "forbidden",
            }
    assert (await client.get("/metrics", key=key)).status == metrics
    assert len(server.calls()) == (len(BODIES) if inference == 200 else 0)
