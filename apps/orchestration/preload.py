"""Has servers take a model into memory before anybody asks for it: each by its kind's own way, where it has one."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import httpx
import msgspec

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.probes import Probes
from citadel import hop
from citadel.addresses import AddressRefused, CheckedTransport, of_fleet
from citadel.sections import Config

Result = Literal["loaded", "always_loaded", "not_supported", "failed"]

WAYS: dict[str, tuple[Result, str]] = {
    "vllm": ("always_loaded", "vLLM has its model in memory as long as it runs."),
    "citadel": ("not_supported", "Another Citadel preloads by its own console and API."),
}
NO_WAY: tuple[Result, str] = ("not_supported", "This kind of server has no way to be told.")

KeepAlive = str | int
"""A duration such as "30m", or seconds; -1 is for ever, which is no duration to Ollama."""


class Preloaded(msgspec.Struct, frozen=True):
    """What became of it on one server."""

    server_id: str
    kind: str
    result: Result
    message: str


async def preload(config: Config, model: Model, servers: Sequence[Server], keep_alive: KeepAlive) -> list[Preloaded]:
    """Tells all `servers` at once; returns when each has answered, or had `routing.first_byte_timeout` for it."""
    ollama = [server for server in servers if server.kind == "ollama"]
    llamacpp = [server for server in servers if server.kind == "llamacpp"]
    told = await asyncio.gather(_tell_all(config, model, ollama, keep_alive), _look_at_all(config, model, llamacpp))
    done = {row.server_id: row for rows in told for row in rows}
    return [done.get(server.server_id) or _row(server, *WAYS.get(server.kind, NO_WAY)) for server in servers]


async def _tell_all(
    config: Config, model: Model, servers: Sequence[Server], keep_alive: KeepAlive
) -> Sequence[Preloaded]:
    if not servers:
        return ()
    timeout = httpx.Timeout(config.routing.first_byte_timeout, connect=config.timeouts.server_connect)
    transport = CheckedTransport(of_fleet(config))
    headers = hop.introduction(config.secret, "preload")
    async with httpx.AsyncClient(
        transport=transport, timeout=timeout, headers=headers, follow_redirects=False
    ) as client:
        return await asyncio.gather(*(_tell(client, model, server, keep_alive) for server in servers))


async def _look_at_all(config: Config, model: Model, servers: Sequence[Server]) -> Sequence[Preloaded]:
    if not servers:
        return ()
    probes = Probes(config)
    try:
        await probes.start()
        return await asyncio.gather(*(_look(probes, model, server) for server in servers))
    finally:
        await probes.stop()


def ollama_question(model: Model, server: Server, keep_alive: KeepAlive) -> tuple[str, dict[str, Any]]:
    """What loads a model there and generates nothing: a prompt that is missing, an input that is empty."""
    holding = model.holdings.get(server.server_id)
    of_class = model.model_class is not None and model.model_class.name == "embedding"
    told = holding.capabilities if holding else None
    embeds = of_class if told is None else "embedding" in told
    if embeds:
        return "/api/embed", {"model": model.name, "input": [], "keep_alive": keep_alive}
    return "/api/generate", {"model": model.name, "stream": False, "keep_alive": keep_alive}


async def _tell(client: httpx.AsyncClient, model: Model, server: Server, keep_alive: KeepAlive) -> Preloaded:
    path, body = ollama_question(model, server, keep_alive)
    headers = {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    try:
        # What it says need not be read, only that it has said it: Ollama answers when the model is there.
        async with client.stream("POST", f"{server.url}{path}", json=body, headers=headers) as answer:
            if answer.is_success:
                return _row(server, "loaded", _lasting(keep_alive))
            return _row(server, "failed", f"It answered {answer.status_code}.")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, AddressRefused) as error:
        return _row(server, "failed", f"It can't be asked: {type(error).__name__}.")


async def _look(probes: Probes, model: Model, server: Server) -> Preloaded:
    """llama.cpp can't be told: it has its model from the start on, but as a router of several or where it may sleep."""
    outcome, load = await probes.probe(server)
    if outcome is None:
        return _row(server, "failed", "It can't be asked: this machine has no connection to spare.")
    if outcome.failure:
        return _row(server, "failed", f"It can't be asked: {outcome.failure}.")
    in_memory = load.has(model.name)
    if in_memory is None:
        return _row(server, "failed", "It does not tell what it has in memory.")
    if in_memory:
        return _row(server, "loaded", "In memory; whether it stays there is among llama.cpp's own settings.")
    return _row(server, "not_supported", "Not in memory now: llama.cpp loads it with the first request for it.")


def _row(server: Server, result: Result, message: str) -> Preloaded:
    return Preloaded(server.server_id, server.kind, result, message)


def _lasting(keep_alive: KeepAlive) -> str:
    if isinstance(keep_alive, str):
        return f"In memory for {keep_alive}."
    return "In memory until it is told otherwise." if keep_alive < 0 else f"In memory for {keep_alive}s."
