"""Ollama's `phi` and `phi:latest` are one model, whichever of them somebody names."""

import asyncio
import time
from typing import Any

import pytest

from apps.orchestration.dialects import FoundModel
from tests.fleet.control import Fleet
from tests.gateway.client import Client, chat
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.test_registration import REGISTER, flat, until_models


@pytest.mark.parametrize("named", ["", ":latest"])
@pytest.mark.parametrize("kind", [None, "ollama"])
async def test_a_model_of_ollama_is_one_and_in_memory_under_both_names(
    citadel: Instance, operator: Client, client: Client, server_id: str, model: str, named: str, kind: str | None
) -> None:
    with Fleet.start(kind="ollama", models=[f"{model}:latest", f"{model}:7b"]) as server:
        told = flat(server_id, server, models=[f"{model}{named}"], kind=kind)
        assert (await operator.post(told, REGISTER)).status == 200
        await until_models(operator, server_id, [model, f"{model}:7b"])
        for name in (model, f"{model}:latest"):
            assert (await client.post(chat(name))).status == 200
        await operator.get(f"/orchestration/servers/{server_id}/health?probe=true")
        begun = time.monotonic()
        while (await rows_of(operator, model))[0]["loaded"] is None:
            assert time.monotonic() - begun < 5 + HELD_UP  # workers look at loads every two seconds
            await asyncio.sleep(0.1)
        explained = await operator.post(chat(model), "/orchestration/route/explain")
        [row] = await rows_of(operator, model)
        assert (row["id"], row["loaded"]) == (model, True)
        assert [one["server_id"] for one in row["servers"]] == [server_id]
        assert explained.json()["order"][0]["must_load_the_model"] is False


async def rows_of(operator: Client, model: str) -> list[dict[str, Any]]:
    """What `/management` says of a model, under any name that begins with it but its other size."""
    page = (await operator.get("/management/models/list?limit=1000")).json()
    return [row for row in page["data"] if row["id"].startswith(model) and not row["id"].endswith(":7b")]


def test_what_was_named_otherwise_is_brought_together(citadel: Instance, server_id: str) -> None:
    """Rows of a server that was not known to be an Ollama when somebody named them."""
    from apps.orchestration import registry
    from apps.orchestration.models import Server

    server = Server.objects.create(server_id=server_id, hostname="127.0.0.1", port=9, registered_by="k")
    registry.name_models(server, [FoundModel("a:latest", 512), FoundModel("b"), FoundModel("b:latest")])
    assert server.models.count() == 3
    server.kind = "ollama"
    server.save()
    registry.keep_models(server, [FoundModel("a", 1024), FoundModel("b")])
    rows = [(row.name, row.named_by, row.context_length) for row in server.models.all()]
    assert rows == [("a", "operator", 512), ("b", "operator", None)]


def test_what_an_operator_says_of_a_model_stays_and_is_completed(citadel: Instance, server_id: str) -> None:
    """Until an operator takes it back; all else its server says, each time anew."""
    from apps.orchestration import registry
    from apps.orchestration.discovery import Found
    from apps.orchestration.models import Server
    from apps.orchestration.registry.named import keep_named

    def rows() -> list[tuple[str, int | None, str, list[str] | None]]:
        return [(row.name, row.context_length, row.owned_by, row.capabilities) for row in server.models.all()]

    server = Server.objects.create(server_id=server_id, hostname="127.0.0.1", port=9, kind="openai")
    registry.name_models(server, [FoundModel("a", capabilities=("chat",)), FoundModel("b")])
    for length in (512, 1024):
        told = ("chat", "tools")
        found = [FoundModel("a", length, "vllm", told), FoundModel("b", length, "vllm", told)]
        registry.keep_models(server, found)
        assert rows() == [("a", length, "vllm", ["chat"]), ("b", length, "vllm", list(told))]
    registry.name_models(server, [FoundModel("a", 256)])
    registry.keep_models(server, found)
    assert rows()[0] == ("a", 256, "vllm", list(told)), "that is all that he says now"
    keep_named(server, ["a", "b"], Found("openai", []))
    registry.keep_models(server, found)
    assert rows()[0] == ("a", 1024, "vllm", list(told))


def test_what_an_operator_has_said_under_another_name_stays(citadel: Instance, server_id: str) -> None:
    from apps.orchestration import registry
    from apps.orchestration.models import Server

    server = Server.objects.create(server_id=server_id, hostname="127.0.0.1", port=9)
    registry.name_models(server, [FoundModel("a", capabilities=("chat",)), FoundModel("a:latest", 512)])
    server.kind = "ollama"
    server.save()
    registry.keep_models(server, [FoundModel("a", 1024, "ollama", ("chat", "tools"))])
    [row] = server.models.all()
    known = (row.name, row.named_by, row.context_length, row.capabilities, row.owned_by)
    assert known == ("a", "operator", 512, ["chat"], "ollama")


def test_what_an_operator_says_of_a_model_no_registration_takes_back(citadel: Instance, server_id: str) -> None:
    from apps.orchestration import registry
    from apps.orchestration.models import Server
    from apps.orchestration.registry.named import keep_registered

    server = Server.objects.create(server_id=server_id, hostname="127.0.0.1", port=9, kind="vllm", registered_by="k")
    keep_registered(server, [FoundModel("a", 1024)], has_moved=False)
    server.models.update(context_length=512, said=["context_length"])  # as in the console
    for models in ([FoundModel("a", 1024)], []):
        keep_registered(server, models, has_moved=False)
        registry.keep_models(server, [FoundModel("a", 2048)])
        assert server.models.get().context_length == 512
