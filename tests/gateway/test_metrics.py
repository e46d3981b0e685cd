"""`/metrics`: for those who may see it, with counts that are right."""

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.fleet.control import Fleet, calls_of
from tests.gateway.client import COMPLETIONS, EMBEDDINGS, Client, chat, streamed
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import Instance

Start = Callable[..., Fleet]
NAMES = [
    "http_requests_total",
    "http_request_duration_seconds_bucket",
    "http_requests_in_flight",
    "ollama_requests_total",
    "cache_hits_total",
    "cache_misses_total",
    "response_tokens_generated_total",
]


async def scrape(citadel: Instance, client: Client) -> dict[str, float]:
    """Every line by its name and labels."""
    answer = await client.get("/metrics", key=citadel.admin_key)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = (line.rpartition(" ") for line in answer.body.decode().splitlines() if line and line[0] != "#")
    return {name: float(value) for name, _, value in lines}


async def until_counted(citadel: Instance, client: Client, expected: dict[str, float]) -> None:
    deadline = time.monotonic() + 3 + HELD_UP
    while True:
        found = await scrape(citadel, client)
        if {name: found.get(name, 0.0) for name in expected} == expected:
            return
        assert time.monotonic() < deadline, {name: found.get(name) for name in expected}
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(("role", "status"), [("admin", 200), ("operator", 200), ("auditor", 200), ("developer", 403)])
async def test_who_may_see_them(citadel: Instance, client: Client, role: str, status: int) -> None:
    assert (await client.get("/metrics", key=citadel.key(role=role))).status == status
    assert (await client.get("/metrics", key="nobody")).status == 401


async def test_requests_to_servers_are_counted_by_server_model_and_outcome(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    bad, good = fleet(model, weight=1000, tokens=5), fleet(model, tokens=5)
    bad.behave("error 500")
    for body in (chat(model), chat(model), streamed(model)):
        assert (await client.post(body)).status == 200
    upstream = f'ollama_requests_total{{model="{model}",outcome="%s",server="%s"}}'
    expected = {
        upstream % ("status_500", bad.server_id): 3.0,
        upstream % ("ok", good.server_id): 3.0,
        f'response_tokens_generated_total{{model="{model}"}}': 15.0,
    }
    await until_counted(citadel, client, expected)


async def test_hits_cost_no_request_and_generate_no_token(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    server = fleet(model, tokens=5)
    before = await scrape(citadel, client)
    for body in [chat(model, seed=1)] * 3:
        await client.post(body)
    for _ in range(2):
        await client.post({"model": model, "input": "Hello"}, EMBEDDINGS)
    expected = {
        f'ollama_requests_total{{model="{model}",outcome="ok",server="{server.server_id}"}}': 2.0,
        f'response_tokens_generated_total{{model="{model}"}}': 5.0,
    }
    await until_counted(citadel, client, expected)
    after = await scrape(citadel, client)
    for endpoint, hits in (("chat", 2), ("embeddings", 1)):  # others may ask as well meanwhile
        name = f'cache_hits_total{{endpoint="{endpoint}"}}'
        assert after[name] - before.get(name, 0.0) >= hits
        name = f'cache_misses_total{{endpoint="{endpoint}"}}'
        assert after[name] - before.get(name, 0.0) >= 1


async def test_what_runs_is_seen(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    server.behave("hang")
    tasks = [asyncio.create_task(client.post(chat(model))) for _ in range(7)]
    await server.until(lambda log: len(calls_of(log)) == 7)
    deadline = time.monotonic() + 3 + HELD_UP
    while (await scrape(citadel, client))["http_requests_in_flight"] < 7:
        assert time.monotonic() < deadline
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_names_are_those_of_the_contract_and_labels_are_few(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model)
    secret = citadel.key(f"team-{model}")
    await client.post(chat(model, seed=1), key=secret, x_request_id=f"seen-{model}")
    await client.post(chat(model, seed=1), key=secret)
    await until_counted(citadel, client, {f'response_tokens_generated_total{{model="{model}"}}': 16.0})
    lines = await scrape(citadel, client)
    assert [name for name in NAMES if not any(line.partition("{")[0] == name for line in lines)] == []
    whole = "\n".join(lines)
    for personal in (secret.split("_")[1], f"team-{model}", f"seen-{model}"):
        assert personal not in whole


async def test_refused_requests_are_counted_too(elsewhere: Elsewhere) -> None:
    """On a Citadel that nobody else asks at the moment that way."""
    async with elsewhere.asking() as client:
        before = await scrape(elsewhere.citadel, client)
        await client.post(chat(elsewhere.model), COMPLETIONS, key="nobody")
        await client.post(chat(elsewhere.model), COMPLETIONS)
        await client.post({"model": "nobody-has-it", "prompt": "Hello"}, COMPLETIONS)
        await client.get("/v1/nowhere/at/all")
        expected = {
            f'http_requests_total{{endpoint="{endpoint}",status="{status}"}}'
            for endpoint, status in (("completions", 401), ("completions", 400), ("completions", 404), ("other", 404))
        }
        more = {name: before.get(name, 0.0) + 1 for name in expected}
        await until_counted(elsewhere.citadel, client, more)
