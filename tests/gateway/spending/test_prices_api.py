"""`/api/v1/prices`: seen by who may use the model, set by administrators."""

import json
import secrets
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from apps.gateway.models import Price
from citadel.api import openapi_document
from tests.gateway.client import Client
from tests.gateway.spending.holder import PRICES, Holder
from tests.instance import Instance

FREE = {"prompt": "0", "completion": "0", "server_second": "0"}


@pytest.fixture
def name() -> Iterator[str]:
    """Of a model that no server has; every price that is set under a name that begins so ends with the test."""
    name = f"priced-{secrets.token_hex(4)}"
    yield name
    Price.objects.filter(model__startswith=name).delete()


@pytest.mark.parametrize("kind", ["", "/Qwen2.5-7B", ":7b", ".2", "/a/b:c.d-e", " with room", "/%2F", "?x=1&y#z", "ü"])
async def test_a_model_has_a_price_by_whatever_name(admin: Holder, name: str, kind: str) -> None:
    model = name + kind
    path = f"{PRICES}/{quote(model)}"
    made = await admin.ask("PUT", path, '{"prompt": "2.5", "completion": 10}')
    row = {"model": model, **FREE, "prompt": "2.5", "completion": "10"}
    assert made.json() == row
    assert (await admin.ask("GET", path)).json() == row
    assert [one.model for one in Price.objects.filter(model__startswith=name)] == [model]


async def test_both_of_ollama_s_names_are_one(admin: Holder, name: str) -> None:
    made = (await admin.ask("PUT", f"{PRICES}/{name}:latest", '{"prompt": 1}')).json()
    assert made == {"model": name, **FREE, "prompt": "1"}
    again = (await admin.ask("PUT", f"{PRICES}/{name}", '{"server_second": "0.000000001"}')).json()
    assert again == {"model": name, **FREE, "server_second": "0.000000001"}, "it is set as a whole"
    for said in ("", ":latest"):
        assert (await admin.ask("GET", f"{PRICES}/{name}{said}")).json() == again
    assert Price.objects.filter(model__startswith=name).count() == 1
    gone = await admin.ask("DELETE", f"{PRICES}/{name}:latest", "")
    assert gone.json() == {"status": "deleted", "model": name}
    for method, body in (("GET", None), ("DELETE", "")):
        assert (await admin.ask(method, f"{PRICES}/{name}", body)).code == "not_found"


async def test_prices_are_kept_exactly(admin: Holder, name: str) -> None:
    for written, told in (("0.1", "0.1"), ('"999999999.999999999"', "999999999.999999999"), ("1e-9", "0.000000001")):
        body = f'{{"prompt": {written}, "completion": {written}, "server_second": {written}}}'
        made = (await admin.ask("PUT", f"{PRICES}/{name}", body)).json()
        assert made == {"model": name, "prompt": told, "completion": told, "server_second": told}


@pytest.mark.parametrize("field", ["prompt", "completion", "server_second"])
@pytest.mark.parametrize("value", ['"NaN"', "-1", "null", "1000000000", "0.0000000001", '"1e3"', "[]", "true", '""'])
async def test_a_bad_price_is_named(admin: Holder, name: str, field: str, value: str) -> None:
    reply = await admin.ask("PUT", f"{PRICES}/{name}", f'{{"{field}": {value}}}')
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (400, field)
    assert f"'{field}'" in error["message"]
    assert (await admin.ask("GET", f"{PRICES}/{name}")).status == 404


async def test_who_forgets_the_price_does_not_make_a_model_free(admin: Holder, name: str) -> None:
    made = (await admin.ask("PUT", f"{PRICES}/{name}", '{"prompt": 3}')).json()
    for nothing in ("", None):
        reply = await admin.ask("PUT", f"{PRICES}/{name}", nothing)
        assert (reply.status, reply.code) == (400, "invalid_json")
        assert "The body is missing" in reply.json()["error"]["message"]
    assert (await admin.ask("GET", f"{PRICES}/{name}")).json() == made
    assert (await admin.ask("PUT", f"{PRICES}/{name}", "{}")).json() == {"model": name, **FREE}


@pytest.mark.parametrize("model", [":latest", "a%00b", "x" * 256])
async def test_what_is_no_name_is_refused(admin: Holder, model: str) -> None:
    reply = await admin.ask("PUT", f"{PRICES}/{model}", "{}")
    assert (reply.status, reply.json()["error"]["param"]) == (400, "model")
    for method, body in (("GET", None), ("DELETE", "")):
        assert (await admin.ask(method, f"{PRICES}/{model}", body)).status == 404


async def test_a_name_of_two_lines_leads_nowhere_and_that_is_described(admin: Holder, name: str) -> None:
    described = json.loads(openapi_document())["paths"][f"{PRICES}/{{model}}"]
    for method, body in (("GET", None), ("PUT", "{}"), ("DELETE", "")):
        reply = await admin.ask(method, f"{PRICES}/{name}%0Ax", body)
        assert (reply.status, reply.code) == (404, "not_found")
        assert "404" in described[method.lower()]["responses"]


async def test_an_unknown_field_is_named(admin: Holder, name: str) -> None:
    reply = await admin.ask("PUT", f"{PRICES}/{name}", '{"answer": 1}')
    assert (reply.status, reply.json()["error"]["param"]) == (400, "answer")


@pytest.mark.parametrize("role", ["operator", "auditor", "developer", "owner", "member", "viewer", "server"])
async def test_all_see_them_and_administrators_set_them(
    citadel: Instance, client: Client, admin: Holder, name: str, role: str
) -> None:
    await admin.ask("PUT", f"{PRICES}/{name}", '{"prompt": 3}')
    by = Holder(client, citadel.key(role=role))
    assert (await by.ask("GET", f"{PRICES}/{name}")).json()["prompt"] == "3"
    assert (await by.ask("PUT", f"{PRICES}/{name}", '{"prompt": 0}')).status == 403
    assert (await by.ask("DELETE", f"{PRICES}/{name}", "")).status == 403
    assert (await by.ask("GET", f"{PRICES}/{name}")).json()["prompt"] == "3"


async def test_a_key_sees_those_of_its_models_alone(
    citadel: Instance, client: Client, admin: Holder, name: str
) -> None:
    for model in (f"{name}-mine", f"{name}-else"):
        await admin.ask("PUT", f"{PRICES}/{model}", '{"prompt": 3}')
    by = Holder(client, citadel.key(models=[f"{name}-mine:latest"]))
    assert [row["model"] for row in (await by.ask("GET", PRICES)).json()["data"]] == [f"{name}-mine"]
    replies = [await by.ask("GET", f"{PRICES}/{name}-{model}") for model in ("else", "none")]
    assert {reply.status for reply in replies} == {404}
    assert replies[0].body.replace(b"-else", b"-none") == replies[1].body


async def test_the_list_comes_in_pages_by_name(admin: Holder, name: str) -> None:
    made = [f"{name}-{number}" for number in range(5)]
    for model in made:
        await admin.ask("PUT", f"{PRICES}/{model}", "{}")
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await admin.ask("GET", f"{PRICES}?limit=2&cursor={quote(cursor)}")).json()
        found += [row["model"] for row in page["data"]]
        cursor = page["next"]
    assert [model for model in found if model.startswith(name)] == made
    assert len(found) == len(set(found))
