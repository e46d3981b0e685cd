"""Has servers take a model into memory before anybody asks for it: each by its kind's own way, where it has one."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import httpx
import msgspec

from apps.orchestration.fleet import Model, Server
from citadel.addresses import AddressRefused, CheckedTransport, of_fleet
from citadel.sections import Config

Result = Literal["loaded", "always_loaded", "not_supported", "failed"]

WAYS: dict[str, tuple[Result, str]] = {
    "vllm": ("always_loaded", "vLLM has its model in memory as long as it runs."),
    "llamacpp": ("always_loaded", "llama.cpp has its model in memory as long as it runs."),
    "citadel": ("not_supported", "Another Citadel preloads by its own console and API."),
}
NO_WAY: tuple[Result, str] = ("not_supported", "This kind of server has no way to be told.")


class Preloaded(msgspec.Struct, frozen=True):
    """What became of it on one server."""

    server_id: str
    kind: str
    result: Result
    message: str


async def preload(config: Config, model: Model, servers: Sequence[Server], keep_alive: str) -> list[Preloaded]:
    """Tells all `servers` at once; returns when each has answered, or had `routing.first_byte_timeout` for it."""
    transport = CheckedTransport(of_fleet(config))
    timeout = httpx.Timeout(config.routing.first_byte_timeout, connect=config.timeouts.server_connect)
    async with httpx.AsyncClient(transport=transport, timeout=timeout, follow_redirects=False) as client:
        return await asyncio.gather(*(_preload(client, model, server, keep_alive) for server in servers))


def ollama_question(model: Model, server: Server, keep_alive: str) -> tuple[str, dict[str, Any]]:
    """What loads a model there and generates nothing: a prompt that is missing, an input that is empty."""
    holding = model.holdings.get(server.server_id)
    of_class = model.model_class is not None and model.model_class.name == "embedding"
    told = holding.capabilities if holding else None
    embeds = of_class if told is None else "embedding" in told
    if embeds:
        return "/api/embed", {"model": model.name, "input": [], "keep_alive": keep_alive}
    return "/api/generate", {"model": model.name, "stream": False, "keep_alive": keep_alive}


async def _preload(client: httpx.AsyncClient, model: Model, server: Server, keep_alive: str) -> Preloaded:
    if server.kind != "ollama":
        return Preloaded(server.server_id, server.kind, *WAYS.get(server.kind, NO_WAY))
    path, body = ollama_question(model, server, keep_alive)
    headers = {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    try:
        # What it says need not be read, only that it has said it: Ollama answers when the model is there.
        async with client.stream("POST", f"{server.url}{path}", json=body, headers=headers) as answer:
            if answer.is_success:
                return Preloaded(server.server_id, server.kind, "loaded", f"In memory for {keep_alive}.")
            return Preloaded(server.server_id, server.kind, "failed", f"It answered {answer.status_code}.")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, AddressRefused) as error:
        return Preloaded(server.server_id, server.kind, "failed", f"It can't be asked: {type(error).__name__}.")
