"""Row 14: a status of 200 with an error in it: a JSON error of one shape or another, an HTML page, nothing."""

from typing import Any

import pytest

from tests.faults.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, Reply, body_of
from tests.faults.conftest import Pair, Servers
from tests.faults.invariants import Case

FORMS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {}),
    (CHAT, {"stream": True}),
    (COMPLETIONS, {}),
    (COMPLETIONS, {"stream": True}),
    (EMBEDDINGS, {}),
]
EJECTING = 5
# What is in the 200, and the status that it means when no server does better.
SERVER_FAULTS = {
    "ok_error": 502,
    "ok_error object": 502,
    "ok_error error busy 503": 503,
    "ok_error object busy 503": 503,
    "ok_error error auth 401": 502,
    "ok_error error forbidden 403": 502,
    "ok_error error model 404": 404,
    "ok_error error rate 429": 429,
    "ok_error error quota 429": 429,
    "ok_error object rate 429": 429,
    "html": 502,
    "empty": 502,
    "not_json": 502,
    "json_is null": 502,
    "json_is []": 502,
    """json_is '"text"'""": 502,
    """json_is '{"choices":[{}],"data":[]}'""": 502,
    """json_is '{"choices":[{"error":{"message":"oom"},"finish_reason":"error"}]}'""": 502,
    """json_is '{"choices":[{"message":{"content":"x"},"text":"x","finish_reason":"abort"}]}'""": 502,
    """json_is '{"message":"no","code":"503"}'""": 503,
}
ASKED_LAST = (404, 429)
"""After these a server is asked after the others for a while."""
OWN_FAULTS = [
    "ok_error error blame 400",
    "ok_error object blame 400",
    "ok_error error context 400",
    """json_is '{"error":{"message":"bad","code":"400"}}'""",
    """json_is '{"error":{"message":"bad","code":"context_length_exceeded"}}'""",
    """json_is '{"message":"bad","type":"invalid_request_error"}'""",
]
STATUSES = [409, 422, 431]
ERROR_EVENTS = ["error_event", "error_event role=false", "error_event named=true", "error_event shape=vllm_old"]


def body(form: tuple[str, dict[str, Any]], model: str, text: str, **more: Any) -> dict[str, Any]:
    """The request; `not_json` and `json_is` are about plain answers alone."""
    path, options = form
    return body_of(path, model, text=text, **options, **more)


def fits(behaviour: str, form: tuple[str, dict[str, Any]]) -> bool:
    return not (form[1].get("stream") and behaviour.startswith(("not_json", "json_is"))) or behaviour in OWN_FAULTS


def check_error(reply: Reply, status: int) -> None:
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("behaviour", SERVER_FAULTS)
async def test_another_server_answers(case: Case, pair: Pair, client: Client, behaviour: str) -> None:
    pair.first.behave(behaviour)
    for number, form in enumerate(form for form in FORMS if fits(behaviour, form)):
        reply = await client.ask(form[0], body(form, pair.model, case.prefix))
        assert reply.status == 200, (form, reply.body)
        assert reply.headers["x-citadel-server"] == pair.second.server_id
        assert not reply.stream_cut
        [record] = case.citadel.records(reply.identity)
        assert record["outcome"] == "ok"
        if number and SERVER_FAULTS[behaviour] in ASKED_LAST:
            continue
        assert reply.headers["x-citadel-attempts"] == "2"
        assert record["attempts"][0]["outcome"] not in ("ok", "refused_request")  # type: ignore[index]


@pytest.mark.parametrize(("behaviour", "status"), SERVER_FAULTS.items())
async def test_where_no_server_does_better_the_status_says_so(
    case: Case, pair: Pair, client: Client, behaviour: str, status: int
) -> None:
    pair.first.behave(behaviour)
    pair.second.behave(behaviour)
    for number, form in enumerate(form for form in FORMS if fits(behaviour, form)):
        reply = await client.ask(form[0], body(form, pair.model, f"{case.prefix} {number}"))
        check_error(reply, status)
        if status in (429, 503):
            assert int(reply.headers["retry-after"]) >= 1
        [record] = case.citadel.records(reply.identity)
        assert record["status"] == status


@pytest.mark.parametrize(
    "behaviour", [OWN_FAULTS[0], *(pytest.param(text, marks=pytest.mark.faults) for text in OWN_FAULTS[1:])]
)
@pytest.mark.parametrize("form", FORMS)
async def test_the_requests_own_fault_is_its_own(
    case: Case, pair: Pair, client: Client, behaviour: str, form: tuple[str, dict[str, Any]]
) -> None:
    """Told to the client, tried nowhere else, not held against the server however often it comes."""
    pair.first.behave(behaviour)
    for number in range(EJECTING + 1):
        reply = await client.ask(form[0], body(form, pair.model, f"{case.prefix} {number}"))
        check_error(reply, 400)
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]
    assert not pair.second.calls()
    pair.first.behave()
    reply = await client.ask(form[0], body(form, pair.model, f"{case.prefix} after"))
    assert reply.headers["x-citadel-server"] == pair.first.server_id


@pytest.mark.parametrize("status", STATUSES)
async def test_a_4xx_that_blames_the_request_is_the_clients(
    case: Case, pair: Pair, client: Client, status: int
) -> None:
    pair.first.behave(f"error {status} problem=blame")
    for number in range(EJECTING + 1):
        reply = await client.ask(CHAT, body_of(CHAT, pair.model, text=f"{case.prefix} {number}"))
        check_error(reply, 400)
        assert reply.headers["x-citadel-attempts"] == "1"
    assert not pair.second.calls()
    pair.first.behave()
    reply = await client.ask(CHAT, body_of(CHAT, pair.model, text=f"{case.prefix} after"))
    assert reply.headers["x-citadel-server"] == pair.first.server_id


@pytest.mark.parametrize(
    ("path", "behaviour"), [(EMBEDDINGS, "error 404 body='404 page not found'"), (CHAT, "error 405 body={}")]
)
async def test_an_endpoint_that_is_not_there_is_no_missing_model(
    case: Case, pair: Pair, client: Client, path: str, behaviour: str
) -> None:
    pair.first.behave(behaviour)
    for number in range(EJECTING + 1):
        reply = await client.ask(path, body_of(path, pair.model, text=f"{case.prefix} {number}"))
        assert reply.status == 200, reply.body
        assert reply.headers["x-citadel-server"] == pair.second.server_id
    pair.second.behave(behaviour)
    reply = await client.ask(path, body_of(path, pair.model, text=f"{case.prefix} none"))
    check_error(reply, 400)
    assert reply.code == "unsupported_by_model"


@pytest.mark.parametrize(
    "behaviour",
    [
        "ok_error",
        "ok_error error blame 400",
        *(pytest.param(text, marks=pytest.mark.faults) for text in [*OWN_FAULTS[1:], *list(SERVER_FAULTS)[1:]]),
    ],
)
@pytest.mark.parametrize("form", FORMS)
async def test_it_is_not_cached(
    case: Case, pair: Pair, client: Client, behaviour: str, form: tuple[str, dict[str, Any]]
) -> None:
    if not fits(behaviour, form):
        behaviour = "ok_error"
    repeatable = {} if form[0] == EMBEDDINGS else {"temperature": 0}
    request = body(form, pair.model, case.prefix, **repeatable)
    pair.first.behave(behaviour)
    pair.second.behave(behaviour)
    assert (await client.ask(form[0], request)).status != 200
    pair.first.behave()
    pair.second.behave()
    reply = await client.ask(form[0], request)
    assert (reply.status, reply.headers["x-citadel-cache"]) == (200, "miss")
    again = await client.ask(form[0], request)
    assert (again.status, again.headers["x-citadel-cache"]) == (200, "hit")


async def test_what_a_server_says_of_itself_is_told_as_its_own(servers: Servers, client: Client, model: str) -> None:
    servers(model, kind="llamacpp", only="chat")
    reply = await client.ask(EMBEDDINGS, body_of(EMBEDDINGS, model))
    check_error(reply, 400)
    assert reply.json()["error"]["message"].startswith(
        "The model's server says: This server does not support embeddings"
    )


@pytest.mark.parametrize("behaviour", ["ok_error", "ok_error object", "html", "empty"])
async def test_the_servers_fault_is_held_against_it(
    servers: Servers, client: Client, model: str, behaviour: str
) -> None:
    bad, good = servers(model, weight=1000), servers(model)
    bad.behave(behaviour)
    for number in range(EJECTING + 1):
        reply = await client.ask(CHAT, body_of(CHAT, model, text=str(number)))
        assert reply.status == 200
        assert reply.headers["x-citadel-server"] == good.server_id
    assert len(bad.calls()) == EJECTING


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("behaviour", ERROR_EVENTS)
async def test_an_error_as_the_first_event(pair: Pair, client: Client, path: str, behaviour: str) -> None:
    pair.first.behave(behaviour)
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    assert reply.status == 200
    assert reply.headers["x-citadel-server"] == pair.second.server_id
    assert reply.finish_reasons == ["stop"]
    assert reply.stream_error is None


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_an_error_event_that_blames_the_request(pair: Pair, client: Client, path: str) -> None:
    pair.first.behave("error_event problem=blame")
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    check_error(reply, 400)
    assert not pair.second.calls()
