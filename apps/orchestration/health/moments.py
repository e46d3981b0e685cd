"""Times of the board as the API tells them."""

from datetime import UTC, datetime


def moment(milliseconds: float) -> str | None:
    """A time since the epoch in ISO 8601; None where there is none."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat() if milliseconds else None
