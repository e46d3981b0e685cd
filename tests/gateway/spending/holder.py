"""Somebody with a key, who asks for budgets, prices and usage."""

import secrets
from typing import Any

from apps.gateway.models import Key
from tests.gateway.client import Client, Reply

BUDGETS, PRICES, USAGE = "/api/v1/budgets", "/api/v1/prices", "/api/v1/usage"


def slug() -> str:
    """A team that isn't there yet."""
    return f"team-{secrets.token_hex(4)}"


def id_of(key: str) -> str:
    """The public part of a key."""
    return key.split("_")[1]


def team_of(key: str) -> str:
    """The slug of its team."""
    return Key.objects.select_related("team").get(key_id=id_of(key)).team.slug


class Holder:
    """What somebody may with a key."""

    def __init__(self, client: Client, key: str):
        self.key = key
        self.key_id = id_of(key)
        self.client = client

    async def ask(self, method: str, path: str, body: str | None = None) -> Reply:
        """The answer to any request; bodies as they are written, so that numbers are too."""
        return await self.client.ask(method, path, data=None if body is None else body.encode(), key=self.key)

    async def create(self, **fields: Any) -> Reply:
        """The answer to who asks for a new budget, of a day and ten tokens unless said."""
        return await self.client.post({"period": "day", "tokens": 10, **fields}, BUDGETS, key=self.key)

    async def made(self, **fields: Any) -> dict[str, Any]:
        """A new budget."""
        reply = await self.create(**fields)
        assert reply.status == 200, reply.body
        row: dict[str, Any] = reply.json()
        return row

    async def change(self, number: int, body: str) -> Reply:
        """The answer to who changes a budget."""
        return await self.ask("PATCH", f"{BUDGETS}/{number}", body)

    async def delete(self, number: int) -> Reply:
        """The answer to who takes one away."""
        return await self.ask("DELETE", f"{BUDGETS}/{number}", "")

    async def row(self, number: int) -> Any:
        """A budget, or the error."""
        return (await self.ask("GET", f"{BUDGETS}/{number}")).json()

    async def listed(self, query: str = "") -> Any:
        """The numbers of the budgets that are seen, or the error."""
        reply = (await self.ask("GET", f"{BUDGETS}?limit=1000{query}")).json()
        return [row["id"] for row in reply["data"]] if "data" in reply else reply["error"]
