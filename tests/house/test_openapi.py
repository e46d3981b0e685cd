"""The API's description of itself is a contract: it changes only where somebody means it to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

SNAPSHOT = Path(__file__).with_name("openapi.json")
PUBLIC = {
    "/health/",
    "/health/live",
    "/health/ready",
    "/health/detailed",
    "/health/enterprise",
    "/.well-known/oauth-authorization-server",
}


@pytest.fixture
async def document(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/api/v1/openapi.json") as answer:
        assert answer.status == 200
        assert answer.content_type == "application/json"
        found: dict[str, Any] = await answer.json()
        return found


async def test_the_description_is_the_snapshot(document: dict[str, Any], tmp_path: Path) -> None:
    found = tmp_path / "openapi.json"
    found.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    assert document == json.loads(SNAPSHOT.read_text()), f"If the change is meant: cp {found} {SNAPSHOT}"


async def test_anybody_may_read_it(document: dict[str, Any], http: aiohttp.ClientSession) -> None:
    async with http.get("/api/v1/openapi.json", headers={"authorization": ""}) as answer:
        assert await answer.json() == document


async def test_every_operation_tells_what_it_is_who_may_and_what_comes_back(document: dict[str, Any]) -> None:
    names = []
    for path, operation in _operations(document):
        names.append(operation["operationId"])
        assert operation["description"].endswith(".")
        assert (operation.get("security") == []) is (path in PUBLIC)
        assert ("401" in operation["responses"]) is (path not in PUBLIC)
        assert operation["responses"]["200"]["content"]
        assert all("x-request-id" in _resolved(document, one)["headers"] for one in operation["responses"].values())
    assert len(set(names)) == len(names)


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in _references(document):
        assert _resolved(document, {"$ref": reference})


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            yield path, operation


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _resolved(document: dict[str, Any], value: dict[str, Any]) -> Any:
    found: Any = value
    if "$ref" in value:
        found = document
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
    return found
