"""What models cost: a worker's own copy of the table of prices."""

from collections.abc import Mapping

from apps.gateway.limits.budgets import BILLION, FREE, Price
from citadel.caller import plain_name
from citadel.database import Pool

_SELECT = "SELECT model, prompt, completion, server_second FROM gateway_price"


class Prices:
    """All prices, replaced whole when the epoch moves. What has none is free."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._known: Mapping[str, Price] = {}

    async def load(self) -> None:
        """Reads every price."""
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(_SELECT)).fetchall()
        self._known = {plain_name(model): Price(*(int(one * BILLION) for one in prices)) for model, *prices in rows}

    def of(self, model: str) -> Price:
        """What a model costs."""
        return self._known.get(plain_name(model), FREE) if self._known else FREE
