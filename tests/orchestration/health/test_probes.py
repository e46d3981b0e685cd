"""One probe of one server on a real socket: what is asked, and what the answer says of the server."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.orchestration.fleet import Server
from apps.orchestration.health.conditions import UNKNOWN, Load
from apps.orchestration.health.probes import Probes
from citadel import config
from tests.fleet.control import Fleet


@pytest.fixture
async def probes(tmp_path: Path) -> AsyncIterator[Probes]:
    given = {"CITADEL_HOME": str(tmp_path), "CITADEL_SECURITY__SECRET_KEY": secrets.token_hex(32)}
    probes = Probes(config.read(given)[0])
    await probes.start()
    yield probes
    await probes.stop()


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    with Fleet.start(models=["m"]) as server:
        yield server


@pytest.fixture
def server(running: Fleet) -> Fleet:
    """One without rules and with an empty log."""
    running.behave()
    running.clear()
    return running


async def failure_of(probes: Probes, server: Fleet, kind: str, **more: Any) -> str:
    """What a probe finds wrong; empty where that is nothing."""
    outcome, _ = await probes.probe(Server("s", server.url, kind, **more))
    assert outcome
    return outcome.failure


@pytest.mark.parametrize(
    ("kind", "named", "status", "failure"),
    [
        ("openai", {}, 404, ""),
        ("openai", {}, 405, ""),
        ("openai", {}, 501, ""),
        ("openai", {"models_endpoint": "/missing"}, 404, ""),
        ("openai", {"listed": True}, 404, "status_404"),
        ("openai", {}, 401, "status_401"),
        ("openai", {}, 503, "status_503"),
        ("openai", {"health_endpoint": "/healthz"}, 404, "status_404"),
        ("llamacpp", {}, 404, "status_404"),
        ("http", {}, 404, ""),
        ("http", {"listed": True, "models_endpoint": "/list"}, 404, ""),
        ("http", {}, 403, ""),
        ("http", {}, 500, "status_500"),
        ("http", {"health_endpoint": "/healthz"}, 404, "status_404"),
    ],
)
async def test_the_absence_of_a_page_that_nobody_named_says_nothing_against_who_may_have_none(
    probes: Probes, server: Fleet, kind: str, named: dict[str, Any], status: int, failure: str
) -> None:
    """Such answers have an error in JSON in them, as those have that tell of trouble."""
    server.behave(f"error {status}", path="/*")
    assert await failure_of(probes, server, kind, **named) == failure


async def test_where_the_list_of_models_is_all_there_is_to_ask_for_it_is_the_one_that_was_named(
    probes: Probes, server: Fleet
) -> None:
    server.behave("error 404", path="/*")
    server.behave({"json_is": {"value": '{"data": []}'}}, path="/openai/models")
    assert await failure_of(probes, server, "openai", models_endpoint="/openai/models") == ""
    assert [seen.path for seen in server.log(probes=True)] == ["/openai/models"]
    server.behave("error 503", path="/openai/models")
    assert await failure_of(probes, server, "openai", models_endpoint="/openai/models") == "status_503"
    server.clear()
    await probes.probe(Server("s", server.url, "vllm", models_endpoint="/openai/models"))
    assert server.log(probes=True)[0].path == "/health", "which vLLM has"


async def test_a_page_of_metrics_that_somebody_has_named_tells_of_the_load(probes: Probes) -> None:
    """Also where a server's kind has none of its own, as of SGLang, which is found to be OpenAI-compatible alone."""
    with Fleet.start(kind="vllm", models=["m"]) as server:
        for named, load in (("", UNKNOWN), ("/metrics", Load(in_flight=0, queue=0))):
            _, found = await probes.probe(Server("s", server.url, "openai", metrics_endpoint=named))
            assert found == load


@pytest.mark.parametrize(("behaviour", "failure"), [("", ""), ("error 500; ", "status_500")])
async def test_of_a_page_that_is_too_long_to_be_read_the_status_counts(
    probes: Probes, server: Fleet, behaviour: str, failure: str
) -> None:
    """As of an aggregator's list of models, which is read to its end when it is asked what it holds."""
    server.behave(f"{behaviour}huge_body 2000000", path="/v1/models")
    assert await failure_of(probes, server, "openai") == failure


@pytest.mark.parametrize(
    ("kind", "named", "failure"),
    [
        ("openai", {}, "status_302"),
        ("llamacpp", {}, "status_302"),
        ("ollama", {"health_endpoint": "/"}, "status_302"),
        ("http", {}, ""),
        ("http", {"health_endpoint": "/healthz"}, ""),
    ],
)
async def test_who_sends_elsewhere_serves_no_models(
    probes: Probes, kind: str, named: dict[str, str], failure: str
) -> None:
    """As a proxy does that asks for a login; of a web server it is a page as any other."""

    async def redirect(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(redirect, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        outcome, _ = await probes.probe(Server("s", f"http://127.0.0.1:{port}", kind, **named))
    assert outcome
    assert outcome.failure == failure
