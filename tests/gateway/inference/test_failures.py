"""What servers' errors mean, whatever shape they tell them in."""

import ast
import json
from pathlib import Path
from typing import Any, TypeGuard

import pytest

from apps.audit.figures import NO_FAILURES
from apps.gateway.inference.http import failures
from apps.gateway.inference.http.failures import Failure, error_in_answer, meaning
from apps.orchestration.fleet import Server
from citadel.errors import BackendRefused


@pytest.fixture
def server() -> Server:
    return Server("s", "http://h", "openai")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": "400"}, ""),
        ({"code": 422}, ""),
        ({"status": 400}, ""),
        ({"status_code": "413"}, ""),
        ({"code": "context_length_exceeded"}, ""),
        ({"code": "unsupported_parameter"}, ""),
        ({"message": "This model's maximum context length is 8 tokens."}, ""),
        ({"type": "exceed_context_size_error"}, ""),
        ({"type": "BadRequestError"}, ""),
        ({"type": "invalid_request_error", "code": "invalid_api_key"}, "status_401"),
        ({"code": 0, "type": "invalid_request_error"}, ""),
        ({"code": "404", "message": "File Not Found"}, "not_found"),
        ({"type": "not_found_error", "message": "no such route"}, "not_found"),
        ({"type": "NotFoundError", "message": "The model `x` does not exist."}, "model_not_found"),
        ({"type": "not_found_error", "message": "model: claude"}, "model_not_found"),
        ({"type": "authentication_error"}, "status_401"),
        ({"type": "permission_error"}, "status_403"),
        ({"type": "rate_limit_error"}, "rate_limited"),
        ({"type": "RateLimitError"}, "rate_limited"),
        ({"type": "insufficient_quota"}, "rate_limited"),
        ({"type": "overloaded_error"}, "status_503"),
        ({"type": "unavailable_error"}, "status_503"),
        ({"type": "timeout_error"}, "status_504"),
        ({"code": "429"}, "rate_limited"),
        ({"code": "503"}, "status_503"),
        ({"code": "599"}, "status_599"),
        ({"code": "200"}, "status_500"),
        ({"code": "²²²"}, "status_500"),
        ({"code": "0400"}, "status_500"),
        ({"code": True}, "status_500"),
        ({"code": ["400"]}, "status_500"),
        ({"type": 5}, "status_500"),
        ({}, "status_500"),
    ],
)
def test_an_error_in_a_200_has_the_status_that_it_tells(server: Server, error: dict[str, Any], reason: str) -> None:
    for payload in ({"error": error}, {"error": {}, **error}, {"object": "error", **error}):
        meant = error_in_answer(payload, server)
        assert (meant.reason if isinstance(meant, Failure) else "") == reason


@pytest.mark.parametrize("payload", [None, [], "x", {"error": "x"}, {"error": ["x"]}, {"error": True}, {"detail": [1]}])
def test_an_error_without_details_is_the_servers(server: Server, payload: Any) -> None:
    meant = error_in_answer(payload, server)
    assert isinstance(meant, Failure)
    assert (meant.reason, meant.blamed) == ("status_500", True)


def test_a_4xx_is_the_clients_but_for_those_that_tell_of_the_server(server: Server) -> None:
    for status in range(400, 500):
        meant = meaning(status, b'{"error":{"message":"no"}}', server)
        if status in (401, 402, 403, 404, 405, 407, 408, 410, 421, 423, 424, 425, 426, 429):
            assert isinstance(meant, Failure)
            assert meant.blamed is (status not in (404, 405, 410, 429))
        else:
            assert isinstance(meant, BackendRefused)
            assert (meant.status_code, meant.message) == (413 if status == 413 else 400, "no")


@pytest.mark.parametrize("status", [404, 405, 410])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"error": {"message": "The model `x` does not exist."}}, (404, "model_not_found")),
        ({"error": {"message": "gone", "code": "model_not_found"}}, (404, "model_not_found")),
        ({"error": {"message": "File Not Found", "type": "not_found_error"}}, (400, "unsupported_by_model")),
        ({"detail": "Not Found"}, (400, "unsupported_by_model")),
        ("404 page not found", (400, "unsupported_by_model")),
    ],
)
def test_what_is_not_there_is_the_model_or_the_endpoint(
    server: Server, status: int, body: Any, told: tuple[int, str]
) -> None:
    meant = meaning(status, body.encode() if isinstance(body, str) else json.dumps(body).encode(), server)
    assert isinstance(meant, Failure)
    assert (meant.error.status_code, meant.error.code) == told
    assert not meant.blamed
    assert meant.pause > 0


def test_a_citadel_that_leads_back_here_does_not_hold_the_model_and_is_not_to_blame() -> None:
    meant = meaning(508, b'{"error": {"message": "back", "code": "loop_detected"}}', Server("a", "http://a", "citadel"))
    assert isinstance(meant, Failure)
    assert (meant.reason, meant.blamed, meant.error.status_code) == ("loop_detected", False, 508)
    assert meant.pause > 0
    other = meaning(508, b"", Server("a", "http://a", "citadel"))
    assert isinstance(other, Failure) and other.blamed


@pytest.mark.parametrize("code", ["no_server_available", "queue_full", "queue_timeout", "draining", ""])
def test_a_citadel_that_has_nobody_for_a_model_is_not_to_blame(code: str) -> None:
    """Its other models are as well as ever; one that stops is out for all."""
    body = json.dumps({"error": {"message": "no", "code": code}}).encode()
    meant = meaning(503, body, Server("a", "http://a", "citadel"), "7")
    assert isinstance(meant, Failure)
    of_a_model = code not in ("draining", "")
    assert (meant.reason, meant.blamed) == (("no_server_there", False) if of_a_model else ("status_503", True))
    assert (meant.error.retry_after, meant.pause) == (7, 7 if of_a_model else 0)
    other = meaning(503, body, Server("a", "http://a", "openai"), "7")
    assert isinstance(other, Failure) and other.blamed


def test_what_no_server_is_to_blame_for_counts_among_no_servers_failures() -> None:
    """Each reason that stands in the code with `blamed=False` is one by which scaling is not triggered."""
    sources = Path(failures.__file__).parent.parent.rglob("*.py")
    calls = [node for source in sources for node in ast.walk(ast.parse(source.read_text())) if is_blameless(node)]
    names = [call.args[0] for call in calls]
    reasons = {
        str(name.value) if isinstance(name, ast.Constant) else getattr(failures, name.id)
        for name in names
        if isinstance(name, ast.Constant | ast.Name)
    }
    assert len(reasons) >= 8
    assert reasons <= set(NO_FAILURES)


def is_blameless(node: ast.AST) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Failure"
        and any(
            word.arg == "blamed" and isinstance(word.value, ast.Constant) and word.value.value is False
            for word in node.keywords
        )
    )
