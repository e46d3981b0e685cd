"""The API, fuzzed by its own description with a key of each role, and with none: nobody gets what he may not have.

Each example is asked for by all roles in turn, from who may least to who may most: making one up takes its time too.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, settings
from requests.adapters import HTTPAdapter
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response
from schemathesis.specs.openapi import checks
from urllib3.util import Retry

from apps.gateway.access.keys.shape import id_of
from apps.orchestration.models.server import RESERVED_IDS
from citadel.permissions import ROLES
from tests.fleet.control import Fleet
from tests.fuzz import planted
from tests.fuzz.description import narrowed
from tests.fuzz.planted import ABOVE, ABSENT, MARK, NUMBER, OTHER, OWN, Planted
from tests.gateway.access.routes import OF_TEAMS
from tests.gateway.access.test_permissions import EVERYBODY, SEERS, WHO_MAY
from tests.house.modules import ROOT
from tests.instance import Instance

ASKERS = ("nobody", "server", "viewer", "developer", "member", "auditor", "owner", "operator", "admin")
CONFINED = EVERYBODY - SEERS
"""Who sees the own team alone, if any."""
READY, REGISTER = "GET /health/ready", "POST /orchestration/servers/register"
INTROSPECT, REVOKE = "POST /api/v1/oauth/introspect", "POST /api/v1/oauth/revoke"
OAUTH = {"POST /api/v1/oauth/token", INTROSPECT, REVOKE}
UNSEEN = [*vars(OTHER).values(), MARK, str(NUMBER), planted.SUBSCRIPTION, planted.HOOK]
"""What is told to nobody confined who has not said it himself."""
THEIRS = {**{vars(OTHER)[name]: vars(ABSENT)[name] for name in vars(OTHER)}, planted.THEIR_TOKEN: planted.NO_TOKEN}
"""What is of the other team, and what is not there in its stead: to who is confined both are the same."""
BEFORE_THE_KEY = {"invalid_json", "json_too_deep", "json_too_large", "invalid_request"}
"""What is wrong with a request before anybody looks at the key, or at the role: that it is no JSON, no form."""
ONE_OF_OURS = re.compile(r"ct[ds]_[0-9A-Za-z]{10}_[\w-]{39}|whsec_|eyJ[\w-]{10,}\.eyJ")
GIVES_SECRETS = {
    "POST /api/v1/keys",
    "POST /api/v1/keys/{key_id}/rotate",
    "POST /orchestration/webhooks",
    "POST /orchestration/webhooks/{subscription_id}/rotate",
    "POST /api/v1/auth/token",
    "POST /api/v1/oauth/token",
}
INNARDS = ("Traceback (most recent", 'File "/', "site-packages", str(ROOT), "psycopg", "django.")
CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]

FUZZ = settings(
    settings.get_profile("citadel"),
    suppress_health_check=list(HealthCheck),
    # What is found depends on what is there, and shrinks badly; to work out all edges takes a minute for keys alone.
    phases=[Phase.generate],
    report_multiple_bugs=False,
)
API = narrowed(planted.parameters(), planted.fields())


@dataclass
class Asked:
    """A Citadel that keys of all roles are tried on, and how it has answered each of them."""

    url: str
    home: str
    planted: Planted
    keys: Mapping[str, str]
    session: requests.Session
    token: str = ""
    statuses: dict[str, Counter[int]] = field(default_factory=dict)

    def by_all(self, case: schemathesis.Case) -> None:
        """Sends a case with each role's key, and looks at the answers."""
        assume(str((case.path_parameters or {}).get("server_id")) not in RESERVED_IDS)  # there another page answers
        request = requests.Request(**case.as_transport_kwargs(self.url)).prepare()
        for role in ASKERS:
            answer = self.ask(role, request)
            self.statuses.setdefault(role, Counter())[answer.status_code] += 1
            with _told(role, request, answer):
                self._check(role, case, request, answer)
            if answer.ok and request.method not in ("GET", "HEAD", "OPTIONS"):
                self._mend(case.operation.label, answer)

    def ask(self, role: str, request: requests.PreparedRequest) -> requests.Response:
        """Sends a request as somebody of this role."""
        key = self.keys.get(role)
        changes = {planted.THEIR_TOKEN: self.token}
        if key:
            changes |= {planted.CLIENT_ID: id_of(key), planted.CLIENT_SECRET: key}
        sent = _changed(request, changes)
        if key and planted.CLIENT_SECRET not in _said(request):  # a client proves in one way who it is
            sent.headers["authorization"] = f"Bearer {key}"
        return self.session.send(sent, timeout=60, allow_redirects=False)

    def lend(self) -> None:
        """Has the other team's key lend a token."""
        headers = {"authorization": f"Bearer {self.planted.their_key}"}
        self.token = self.session.post(f"{self.url}/api/v1/auth/token", headers=headers).json()["access_token"]

    def _mend(self, operation: str, answer: requests.Response) -> None:
        self.planted.mend(operation, answer.json() if operation in planted.MADE else {})
        if operation == REVOKE:
            self.lend()

    def _check(
        self, role: str, case: schemathesis.Case, request: requests.PreparedRequest, answer: requests.Response
    ) -> None:
        operation = case.operation.label
        self._check_everybodys(operation, answer)
        if case.method != case.operation.method.upper():
            assert answer.status_code in (204, 401, 403, 404, 405)
            return
        case.validate_response(Response.from_requests(answer, verify=True), checks=CHECKS)
        if role not in WHO_MAY[operation]:
            _check_refusal(role, case, answer)
        elif operation not in OAUTH:
            assert answer.status_code != 401
        if role in CONFINED:
            self._check_confined(role, operation, request, answer)

    def _check_everybodys(self, operation: str, answer: requests.Response) -> None:
        """What holds of every answer, whoever asks."""
        assert answer.status_code < 500 or operation == READY
        told = f"{answer.headers}{answer.text}"
        assert not [word for word in (*planted.SECRETS, *INNARDS, self.home) if word in told]
        assert (answer.ok and operation in GIVES_SECRETS) or not ONE_OF_OURS.search(told)

    def _check_confined(
        self, role: str, operation: str, request: requests.PreparedRequest, answer: requests.Response
    ) -> None:
        """Of the other team nothing is told, nothing is changed, and it is as if it were not there."""
        said, told = _said(request), f"{answer.headers}{answer.text}"
        assert not [word for word in UNSEEN if word in told and word not in said]
        if answer.ok and operation.split()[1].startswith(OF_TEAMS):
            _check_rows(answer.json(), changed=request.method != "GET")
            assert request.method == "GET" or ABOVE not in said
        if not any(name in said for name in THEIRS):
            return
        if operation == REGISTER and answer.ok:  # which may name several
            assert answer.json()["server_id"] != OTHER.server_id
        else:
            assert not answer.ok or operation == INTROSPECT
        # Of servers all who register some are told whose they are; of a token who revokes it, that it is another's.
        if role != "server" and operation != REVOKE:
            without = self.ask(role, _changed(request, THEIRS))
            assert (answer.status_code, _without_theirs(answer.text)) == (without.status_code, without.text)


def _check_refusal(role: str, case: schemathesis.Case, answer: requests.Response) -> None:
    """Who may not is told that alone, or what is wrong with the request before anybody looks at that."""
    if answer.status_code == (401 if role == "nobody" else 403):
        return
    error = answer.json()["error"]
    assert answer.status_code in (400, 404), "who may not is told something else"
    if answer.status_code == 404:
        assert error["message"].startswith("There is nothing at ")
    elif error["code"] not in BEFORE_THE_KEY:
        assert role != "nobody"
        assert error["param"] in {parameter.name for parameter in case.operation.query}


def _check_rows(answer: Mapping[str, Any], *, changed: bool) -> None:
    """All are of the own team, and what was made or changed may no more than its owner."""
    for row in answer.get("data", [answer]):
        assert {row.get("team"), row.get("slug")} <= {OWN.team, None}
    if changed and "role" in answer:
        assert ROLES[answer["role"]] <= ROLES["owner"]


def _changed(request: requests.PreparedRequest, changes: Mapping[str, str]) -> requests.PreparedRequest:
    """The same with some words for others."""
    changed = request.copy()
    assert changed.url
    body = changed.body
    for word, other in changes.items():
        changed.url = changed.url.replace(word, other)
        if body:
            body = body.replace(word.encode(), other.encode()) if isinstance(body, bytes) else body.replace(word, other)
    if body != changed.body:
        changed.body = body
        changed.prepare_content_length(body)
    return changed


def _said(request: requests.PreparedRequest) -> str:
    """All that a request says, but for who asks."""
    body = request.body or b""
    return f"{request.url} {body.decode('utf-8', 'replace') if isinstance(body, bytes) else body}"


def _without_theirs(text: str) -> str:
    for name, absent in THEIRS.items():
        text = text.replace(name, absent)
    return text


@contextmanager
def _told(role: str, request: requests.PreparedRequest, answer: requests.Response) -> Iterator[None]:
    """Says of what is wrong who was told what."""
    try:
        yield
    except (AssertionError, FailureGroup) as wrong:
        wrong.add_note(f"{role}: {request.method} {request.url}\n{request.body!r}")
        wrong.add_note(f"{answer.status_code} {answer.headers}\n{answer.text[:2000]}")
        raise


@pytest.fixture(scope="module")
def asked(citadel: Instance) -> Iterator[Asked]:
    """It, with a key for each role."""
    keys = {
        role: citadel.key(OWN.team, role=role, models=[OWN.model] if role in CONFINED else None)
        for role in ASKERS
        if role != "nobody"
    }
    stands = Planted(citadel, id_of(keys["server"]))
    models = [OWN.model, OTHER.model]
    retry = Retry(1, allowed_methods=None)  # of a connection that a refusal has closed
    try:
        with (
            Fleet.start(models=models, tokens=2, dimensions=4) as server,
            citadel.registered(server.url, models),
            requests.Session() as session,
        ):
            session.mount("http://", HTTPAdapter(max_retries=retry))
            found = Asked(citadel.url, str(citadel.home), stands, keys, session)
            found.lend()
            yield found
    finally:
        stands.remove()


@pytest.fixture
def asked_often(asked: Asked, request: pytest.FixtureRequest) -> Iterator[Asked]:
    """Makes sure afterwards that who may came as far as what is there, and that who may not came to be refused."""
    asked.statuses.clear()
    yield asked
    operation = request.node.name.partition("[")[2].rstrip("]")
    for role, statuses in asked.statuses.items():
        told = statuses.keys() - {400}
        if role not in WHO_MAY[operation]:
            assert told & {401, 403}, (role, statuses)
        elif operation not in OAUTH:
            assert told - {401, 403}, (role, statuses)


@API.parametrize()
@settings(FUZZ, max_examples=5)
def test_no_role_gets_what_it_may_not_have(asked: Asked, case: schemathesis.Case) -> None:
    asked.by_all(case)


@pytest.mark.long
@API.parametrize()
@settings(FUZZ, max_examples=1000)
def test_no_role_gets_what_it_may_not_have_a_thousand_times(asked_often: Asked, case: schemathesis.Case) -> None:
    asked_often.by_all(case)
