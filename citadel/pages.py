"""Lists that are given page by page: `{"data": [...], "next": cursor or null}`."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import Field

from citadel.decoding import NO_NUL

T = TypeVar("T")

USUAL, MOST = 100, 1000
Limit = Annotated[int, Field(ge=1, le=MOST)]
NameCursor = Annotated[str, Field(max_length=255, pattern=NO_NUL)]
"""Of a list that is ordered by names: the last one of the page before."""
NumberCursor = Annotated[str, Field(pattern="^[0-9]{1,18}$")]
"""Of one that is ordered by numbers, newest or oldest first."""


class Page(msgspec.Struct, frozen=True):
    """Which part of a list is asked for: at most `limit` rows, those after `after`."""

    limit: int
    after: str

    @classmethod
    def asked(cls, limit: int, cursor: str | None) -> "Page":
        """By a query's `limit` and `cursor`."""
        return cls(limit, cursor or "")

    @property
    def number(self) -> int | None:
        """The cursor of a list that is ordered by numbers; None at its beginning."""
        return int(self.after) if self.after else None

    def of(self, rows: Sequence[T], row: Callable[[T], Any], cursor: Callable[[T], str]) -> dict[str, Any]:
        """The page out of its rows and, to know whether there are more, one beyond them."""
        kept = rows[: self.limit]
        following = cursor(kept[-1]) if len(rows) > self.limit else None
        return {"data": [row(item) for item in kept], "next": following}
