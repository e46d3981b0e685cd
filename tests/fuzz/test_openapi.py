"""The API, fuzzed by its own description: whatever comes in, an answer goes out, and in the form that was promised."""

import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from django.db import transaction
from hypothesis import HealthCheck, Phase, assume, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.transport import Response
from schemathesis.specs.openapi import checks

from apps.orchestration.models.server import RESERVED_IDS
from tests.fleet.control import Fleet
from tests.fuzz.description import api_of, document
from tests.instance import Instance

CHECKS = [
    not_a_server_error,
    checks.allow_header_conformance,
    checks.content_type_conformance,
    checks.negative_data_rejection,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
    checks.unsupported_method,
]
THE_SERVERS_WORDS = "must be at most 2."
"""What our test server says of a request that makes no sense to it: a JSON schema that is none, say."""
BEYOND_SCHEMAS = {"addresses", "all", "certificates", "class", "expires", "period", "since", "until", "url"}
"""Fields of which the description can't say all: that a period begins before it ends, which addresses may be called,
what goes together, where a network begins, which certificates others have, what time it is.
"""
BEFORE_THE_KEY = {
    (400, "invalid_json"),
    (400, "json_too_deep"),
    (400, "json_too_large"),
    (400, "invalid_request"),
    (404, "not_found"),
}
"""What is wrong with a request before anybody looks at the key: no JSON, no form, or an address that leads nowhere."""
OAUTH = {f"POST /api/v1/oauth/{name}" for name in ("token", "introspect", "revoke")}
"""Who take forms, in which everything is text, and have a form of errors of their own."""
BEYOND_A_SCHEMA = {
    "POST /orchestration/servers/register",
    "GET /orchestration/events",
    "POST /api/v1/budgets",
    "PATCH /api/v1/budgets/{budget_id}",
    "PUT /api/v1/prices/{model}",
    "GET /api/v1/usage",
    *OAUTH,
}
"""What may be refused though its form is right: where a server is, whether Citadel may go there; what is no date; a
number with too many decimals; what does not go together.
"""
READY = "GET /health/ready"
"""Says 503 while other tests have a server down."""

settings.register_profile("fuzz", settings.get_profile("citadel"), suppress_health_check=list(HealthCheck))


MODEL = f"fuzzed-{secrets.token_hex(4)}"
KEY_ID = secrets.token_hex(5)
THERE = {"model": MODEL, "model_id": MODEL, "key_id": KEY_ID}
"""What is there, by the parameters that name it."""


def _api() -> schemathesis.BaseSchema:
    """The description, with a model and a key that are there as those to ask for."""
    described = document()
    for operations in described["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                body = content["application/json"]["schema"]
                if body.get("properties", {}).get("model", {}).get("type") == "string":
                    body["properties"]["model"] = {"enum": [MODEL]}
            for parameter in operation["parameters"]:
                if there := THERE.get(parameter["name"]):
                    parameter["schema"] = {"anyOf": [{"type": "string", "enum": [there]}, parameter["schema"]]}
    return api_of(described)


API = _api()


@dataclass
class Target:
    """A running Citadel, and what its answers were."""

    url: str
    headers: dict[str, str]
    session: requests.Session
    statuses: Counter[int] = field(default_factory=Counter)

    def ask(self, case: schemathesis.Case) -> Response:
        """Sends a case and checks what every answer must have."""
        assume((case.path_parameters or {}).get("server_id") not in RESERVED_IDS)  # there another page answers
        answer = case.call(base_url=self.url, session=self.session, headers=self.headers)
        self.statuses[answer.status_code] += 1
        assert answer.headers.get("x-request-id")
        if answer.status_code >= 400 and case.operation.label != READY:
            assert answer.status_code < 500, answer.text
            assert answer.status_code != 422
            _check_error(answer, case.operation.label in OAUTH)
        plain = case.operation.label not in BEYOND_A_SCHEMA
        if answer.status_code == 400 and plain and case.meta and case.meta.generation.mode.is_positive:
            known = answer.json()["error"]["param"] in BEYOND_SCHEMAS or THE_SERVERS_WORDS in answer.text
            assert known or _holds_whole_float(case.body), answer.text
        return answer


def _holds_whole_float(value: object) -> bool:
    """JSON Schema calls 1.0 an integer; the gateway wants it written as one."""
    if isinstance(value, dict | list):
        return any(map(_holds_whole_float, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()


def _checks(case: schemathesis.Case) -> list[Any]:
    """What is text in a form is no wrong value."""
    return [one for one in CHECKS if case.operation.label not in OAUTH or one is not checks.negative_data_rejection]


def _check_error(answer: Response, oauth: bool) -> None:
    assert answer.headers["content-type"] == ["application/json"]
    body = answer.json()
    if oauth and answer.status_code != 405:
        assert {name: type(value) for name, value in body.items()} == {"error": str, "error_description": str}
        return
    assert list(body) == ["error"]
    kinds = {name: type(value) for name, value in body["error"].items() if name != "param"}
    assert kinds == {"message": str, "type": str, "code": str}
    assert isinstance(body["error"]["param"], str | None)


@pytest.fixture(scope="module")
def server(citadel: Instance) -> Iterator[Fleet]:
    """The server that holds the model."""
    with Fleet.start(models=[MODEL], tokens=2, dimensions=4) as started, citadel.registered(started.url, [MODEL]):
        yield started


@pytest.fixture
def target(citadel: Instance, server: Fleet) -> Iterator[Target]:
    """With a key that may do all; what it has registered is taken out."""
    from apps.gateway.models import Key
    from apps.orchestration.models import Server

    key, asked_for = citadel.key(role="admin"), citadel.key()
    Key.objects.filter(key_id=asked_for.split("_")[1]).update(key_id=KEY_ID)
    with requests.Session() as session:
        yield Target(citadel.url, {"authorization": f"Bearer {key}"}, session)
    Server.objects.filter(registered_by=key.split("_")[1]).delete()
    with transaction.atomic():  # its last use may just be written down
        list(Key.objects.select_for_update().filter(key_id=KEY_ID))
        Key.objects.filter(key_id=KEY_ID).delete()


@pytest.fixture
def stranger(citadel: Instance) -> Iterator[Target]:
    """Without a key."""
    with requests.Session() as session:
        yield Target(citadel.url, {}, session)


@pytest.fixture
def served(target: Target, server: Fleet, request: pytest.FixtureRequest) -> Iterator[Target]:
    """Makes sure afterwards that a good part of the requests for inference was good, and a good part not."""
    yield target
    if "[POST /v1/" in request.node.name:
        enough = target.statuses.total() / 5
        assert target.statuses[200] > enough, target.statuses
        assert target.statuses[400] > enough, target.statuses


@API.parametrize()
@settings(settings.get_profile("fuzz"), max_examples=10)
def test_every_answer_is_one_of_those_described(served: Target, case: schemathesis.Case) -> None:
    case.validate_response(served.ask(case), checks=_checks(case))


@pytest.mark.long
@API.parametrize()
@settings(settings.get_profile("fuzz"), max_examples=1000)
def test_every_answer_is_one_of_those_described_a_thousand_times(served: Target, case: schemathesis.Case) -> None:
    case.validate_response(served.ask(case), checks=_checks(case))


@API.parametrize()
@settings(settings.get_profile("fuzz"), max_examples=10, phases=[Phase.generate])  # edges come with keys
def test_a_stranger_learns_nothing(stranger: Target, case: schemathesis.Case) -> None:
    answer = stranger.ask(case)
    if case.operation.definition.raw.get("security") != [] and answer.status_code not in (401, 405):
        error = answer.json()["error"]
        assert (answer.status_code, error if isinstance(error, str) else error["code"]) in BEFORE_THE_KEY
