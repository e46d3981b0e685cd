"""`/orchestration/events`: what has happened to the fleet, the newest first."""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.http import QueryDict
from ninja import Router

from apps.orchestration.events import COLUMNS, Kept
from apps.orchestration.messages import TYPES, Event
from apps.orchestration.requests import FleetRequest
from citadel.answer import Answer, json_answer
from citadel.description import schema
from citadel.errors import BadRequest, Unavailable
from citadel.permissions import SEE_FLEET, require

router = Router(tags=["Fleet"])

USUAL, MOST = 100, 1000
"""Events in an answer."""
LARGEST_ID = 2**63 - 1
LONGEST_SERVER_ID = 64
LATEST = 32_503_680_000.0
"""The year 3000, in seconds since 1970."""

_SELECT = f"""
SELECT {COLUMNS} FROM orchestration_event
WHERE id < %(cursor)s AND (%(types)s::text[] IS NULL OR type = ANY (%(types)s)) AND (%(server_id)s::text IS NULL
    OR server_id = %(server_id)s) AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)
ORDER BY id DESC LIMIT %(limit)s
"""  # noqa: S608  # constants alone


class Question(NamedTuple):
    """Which events are asked for."""

    types: list[str] | None
    server_id: str | None
    since: datetime | None
    cursor: int
    limit: int


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


_LISTED = f"^({'|'.join(TYPES)})(,({'|'.join(TYPES)}))*$"
_ANSWER = {
    "type": "object",
    "required": ["events", "next"],
    "properties": {
        "events": {"type": "array", "items": schema(Event)},
        "next": {"type": ["string", "null"], "description": "The cursor of older ones; null where there are none."},
    },
}
_DESCRIBED = {
    "parameters": [
        _query("type", "Only these types, separated by commas.", type="string", pattern=_LISTED),
        _query("server_id", "Only this server's.", type="string", maxLength=LONGEST_SERVER_ID),
        _query("since", "Not older than this: ISO 8601, or seconds since 1970.", type="string", minLength=1),
        _query("cursor", "Older ones than the last answer's: its `next`.", type="string", pattern="^[1-9][0-9]{0,17}$"),
        _query("limit", "So many at most.", type="integer", minimum=1, maximum=MOST, default=USUAL),
    ],
    "responses": {
        200: {"content": {"application/json": {"schema": _ANSWER}}},
        **{kind.status: {"$ref": f"#/components/responses/{kind.__name__}"} for kind in (BadRequest, Unavailable)},
    },
}


@router.get("", openapi_extra=_DESCRIBED)
async def events(request: FleetRequest) -> Answer:
    """Events of the fleet, the newest first."""
    require(request.auth, SEE_FLEET)
    question = read(request.GET)
    wanted = {**question._asdict(), "limit": question.limit + 1}
    async with request.runtime.pool.connection() as connection:
        rows = await (await connection.execute(_SELECT, wanted)).fetchall()
    found = [Kept._make(row)._asdict() for row in rows[: question.limit]]
    more = str(found[-1]["id"]) if len(rows) > question.limit else None
    return json_answer({"events": found, "next": more})


def read(query: QueryDict) -> Question:
    """What a query asks for; BadRequest names the field that makes no sense."""
    return Question(
        _types(query.get("type")),
        _server_id(query.get("server_id")),
        _since(query.get("since")),
        _number(query, "cursor", LARGEST_ID, LARGEST_ID),
        _number(query, "limit", USUAL, MOST),
    )


def _types(text: str | None) -> list[str] | None:
    if text is None:
        return None
    types = text.split(",")
    if not set(types) <= set(TYPES):
        raise BadRequest(f"Invalid value for 'type': of {', '.join(TYPES)}, separated by commas.", param="type")
    return types


def _server_id(text: str | None) -> str | None:
    if text and (len(text) > LONGEST_SERVER_ID or "\0" in text):
        raise BadRequest("Invalid value for 'server_id': no server has such an id.", param="server_id")
    return text


def _since(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if text.replace(".", "", 1).isdecimal() and text.isascii():
            return datetime.fromtimestamp(min(float(text), LATEST), UTC)
        told = datetime.fromisoformat(text if "T" not in text else text.replace(" ", "+"))  # a + that was not escaped
        return (told if told.tzinfo else told.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        message = "Invalid value for 'since': a time like 2026-01-31T12:00:00Z, or seconds since 1970."
        raise BadRequest(message, param="since") from None


def _number(query: QueryDict, name: str, usual: int, largest: int) -> int:
    text = query.get(name)
    if text is None:
        return usual
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(largest)) else 0
    if not 1 <= number <= largest:
        raise BadRequest(f"Invalid value for '{name}': a whole number from 1 to {largest}.", param=name)
    return number
