"""Which request meets a behaviour, and what is remembered of it."""

import pytest

from tests.fleet.control import Fleet, FleetError

from .client import CHAT, ask, chat, connect, request_bytes, stream


def statuses(server: Fleet, count: int, **fields: object) -> list[int]:
    return [ask(server, body=chat(**fields)).status for _ in range(count)]  # type: ignore[arg-type]


def test_default_next_and_every(server: Fleet) -> None:
    server.behave("error 500")
    assert statuses(server, 2) == [500, 500]
    server.behave("error 429", next=2)
    assert statuses(server, 3) == [429, 429, 500]
    server.behave()
    server.behave("error 503", every=3)
    assert statuses(server, 6) == [200, 200, 503, 200, 200, 503]


def test_by_header_body_and_path(server: Fleet) -> None:
    server.behave("error 418", header="x-who: me")
    server.behave("error 404 model", body="needle")
    server.behave("hang", path="/health")
    assert ask(server, body=chat(), headers="X-Who: me\r\n").status == 418
    assert ask(server, body=chat(), headers="X-Who: you\r\n").status == 200
    assert ask(server, body=chat("a needle here")).status == 404
    assert ask(server, "/health", limit=0.1).end == "timeout"
    assert ask(server, "/v1/models").status == 200


def test_inference_hangs_while_health_and_models_are_well(server: Fleet) -> None:
    server.behave("hang")
    assert ask(server, body=chat(), limit=0.1).end == "timeout"
    assert ask(server, "/v1/embeddings", {"input": "x"}, limit=0.1).end == "timeout"
    assert [ask(server, page).status for page in ("/health", "/v1/models")] == [200, 200]


def test_the_request_can_ask_for_it_itself(server: Fleet) -> None:
    server.behave("error 500")
    assert ask(server, body=chat("please [[behave:error 429 retry_after=7]] now")).status == 429
    assert b"retry-after: 7" in ask(server, body=chat("[[behave:error 429 retry_after=7]]")).head
    seen = ask(server, body=chat(stream=True), headers="x-fleet: die chunk:2 rst; lines crlf\r\n")
    assert (seen.end, seen.body.count(b"data: "), b"\r\n\r\n" in seen.body) == ("rst", 3, True)
    both = stream(server, "[[behave:die chunk:1]] [[behave:no_space]]")
    assert both.body.count(b"data:{") == 2
    assert ask(server, body=chat("[[behave:fly]]")).json()["error"]["type"] == "fleet_error"


def test_several_behaviours_go_together(server: Fleet) -> None:
    server.behave({"lines": {"ends": "crlf"}, "comments": {}, "die": {"at": "chunk:2"}, "slow_chunks": {"ms": 1}})
    seen = stream(server)
    assert seen.body.count(b": ping\r\n\r\ndata: ") == 3
    assert server.log()[-1].behaviours == ["lines", "comments", "die", "slow_chunks"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fly", "no behaviour is named 'fly'"),
        ("die chunk:x", "no point of an answer"),
        ("die chunk:1 boom", "how"),
        ("die chunk:1 rst 3", "one too many"),
        ("error 600", "status"),
        ('{"die": {"when": 3}}', "when"),
        ("{nonsense", "no JSON object"),
        ("slow_start 'x", "No closing quotation"),
        ('{"die": 3}', "die"),
    ],
)
def test_a_behaviour_that_is_not_understood_is_refused_with_the_reason(server: Fleet, spec: str, says: str) -> None:
    with pytest.raises(FleetError, match=says):
        server.behave(spec)
    assert statuses(server, 1) == [200]


def test_the_log_holds_what_was_seen_and_the_state_counts(server: Fleet) -> None:
    ask(server, body=chat("größe"), headers="X-Trace: 5\r\n")
    stream(server)
    ask(server, "/v1/models?limit=3")
    whole, streamed, models = server.log()
    assert whole.json() == chat("größe")
    assert (whole.method, whole.path, whole.headers["x-trace"], whole.status) == ("POST", CHAT, "5", 200)
    assert (streamed.chunks_sent, streamed.events_sent, streamed.ended) == (8, 11, "completed")
    assert models.path == "/v1/models"
    assert whole.read_at is not None
    assert whole.first_byte_at is not None
    assert whole.ended_at is not None
    assert whole.begun_at <= whole.read_at <= whole.first_byte_at <= whole.ended_at
    visits = server.connections()
    assert [visit.requests for visit in visits] == [1, 1, 1]
    assert {whole.connection, streamed.connection, models.connection} == {visit.id for visit in visits}
    state = server.state()
    assert (state.requests, state.completed, state.paths[CHAT], state.peak_in_flight) == (3, 3, 2, 1)
    server.clear()
    assert (server.log(), server.state().requests) == ([], 0)


def test_peak_in_flight(server: Fleet) -> None:
    server.behave("slow_start 150")
    connections = [connect(server) for _ in range(5)]
    for connection in connections:
        connection.sendall(request_bytes(CHAT, chat()))
    server.wait_for(lambda log: len(log) == 5 and all(entry.ended for entry in log))
    assert (server.state().peak_in_flight, server.state().in_flight) == (5, 0)
    for connection in connections:
        connection.close()


async def test_the_control_works_in_async_tests_too() -> None:
    async with Fleet.start(kind="vllm", models=["tiny"]) as server:
        assert ask(server, body=chat()).status == 200
        assert await server.until(lambda log: [entry.path for entry in log]) == [CHAT]
        with pytest.raises(TimeoutError, match="of 1 requests"):
            await server.until(lambda log: len(log) > 1, timeout=0.05)
        with pytest.raises(TimeoutError):
            server.wait_for(lambda log: len(log) > 1, timeout=0.05)
    with pytest.raises(FleetError):
        server.state()
