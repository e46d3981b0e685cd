"""Servers that the client packages talk to through Citadel: one of each kind, and one for trouble."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import openai
import pytest

from tests.fleet.backend.config import Kind
from tests.fleet.control import Fleet
from tests.instance import Instance

KINDS: tuple[Kind, ...] = ("llamacpp", "ollama", "vllm")
CHAT_MODEL = "smollm2:135m"
EMBEDDING_MODEL = "all-minilm"


@dataclass(frozen=True)
class Served:
    """A test server and the name of its model, which has a slash and a colon in it, as names have."""

    model: str
    server: Fleet
    server_id: str


@pytest.fixture(scope="package")
def served(citadel: Instance) -> Iterator[dict[str, Served]]:
    """A server of each kind by the kind's name, and `trouble`, which is asked to misbehave."""
    with ExitStack() as stack:
        found: dict[str, Served] = {kind: _serve(citadel, stack, kind, kind) for kind in KINDS}
        found["trouble"] = _serve(citadel, stack, "trouble", "openai")
        yield found


def _serve(citadel: Instance, stack: ExitStack, name: str, kind: Kind) -> Served:
    model = f"clients/{name}-{secrets.token_hex(3)}:tiny"
    server = stack.enter_context(Fleet.start(kind=kind, models=[model]))
    server_id = stack.enter_context(citadel.registered(server.url, [model], kind=kind))
    return Served(model, server, server_id)


@pytest.fixture
def client(citadel: Instance) -> Iterator[openai.OpenAI]:
    """The newest package's client, which sends nothing twice by itself."""
    with openai.OpenAI(base_url=f"{citadel.url}/v1", api_key=citadel.key(), max_retries=0) as client:
        yield client
