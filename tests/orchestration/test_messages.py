"""The union of what is said over `/ws/console`: every event has its type there, and nobody writes events past it."""

import ast
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
import pytest

from apps.orchestration.events import Kept
from apps.orchestration.live import LARGEST, message_of, snapshot
from apps.orchestration.messages import (
    TYPES,
    BudgetWarning,
    Departed,
    Drained,
    Enabled,
    Event,
    Exceeded,
    FailoverCompleted,
    FailoverInitiated,
    Happening,
    HealthChanged,
    Message,
    Rebalanced,
    Registered,
    Standing,
)
from tests.house.modules import modules

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
EXAMPLES: list[tuple[Happening, dict[str, Any]]] = [
    (Registered("ollama", "GPU", "active"), {"kind": "ollama", "role": "GPU", "state": "active"}),
    (Registered("", "", "pending"), {"kind": "", "role": "", "state": "pending"}),
    (Registered(returned=True), {"returned": True}),
    (Departed("deregistered", "somebody"), {"reason": "deregistered", "by": "somebody"}),
    (Departed("silent", silent_seconds=91), {"reason": "silent", "silent_seconds": 91}),
    (
        HealthChanged("healthy", "unhealthy", "probe", "refused"),
        {"from": "healthy", "to": "unhealthy", "source": "probe", "reason": "refused"},
    ),
    (Exceeded("cpu", 0.9, 0.85), {"figure": "cpu", "value": 0.9, "threshold": 0.85}),
    (FailoverInitiated("automatic", "refused"), {"cause": "automatic", "reason": "refused"}),
    (FailoverCompleted("manual", 2, ["m"]), {"cause": "manual", "models": 2, "without_server": ["m"]}),
    (Rebalanced("recovery", {"m": {"a": 1.0}}), {"cause": "recovery", "shares": {"m": {"a": 1.0}}}),
    (Drained("draining", "active", "somebody"), {"state": "draining", "before": "active", "by": "somebody"}),
    (Enabled("active", "draining", "somebody"), {"state": "active", "before": "draining", "by": "somebody"}),
    (
        BudgetWarning("team:red", "month", "2026-01-01", "tokens", 80),
        {"holder": "team:red", "period": "month", "begins": "2026-01-01", "unit": "tokens", "share": 80},
    ),
    (
        BudgetWarning("team:red", "total", None, "money", 100),
        {"holder": "team:red", "period": "total", "begins": None, "unit": "money", "share": 100},
    ),
]


@pytest.mark.parametrize(("happening", "data"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_what_is_written_is_what_the_union_describes(happening: Happening, data: dict[str, Any]) -> None:
    written = msgspec.to_builtins(happening)
    assert written == data
    raw = message_of(Kept(1, happening.event, "a", AT, written)).raw
    read = msgspec.json.decode(raw, type=Message)
    assert read.__struct_config__.tag == happening.event
    assert getattr(read, "data", None) == happening


def test_every_type_has_a_message_and_an_example() -> None:
    assert [kind.__struct_config__.tag for kind in get_args(Event)] == list(TYPES)
    assert [kind.event for kind in Happening.__subclasses__()] == list(TYPES)
    assert {type(happening) for happening, _ in EXAMPLES} == set(Happening.__subclasses__())


def test_nobody_writes_events_but_their_own_module() -> None:
    writers = {
        module.name
        for module in modules("citadel", "apps")
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Attribute) and node.attr == "create" and ast.unparse(node.value) == "Event.objects")
        or (isinstance(node, ast.Constant) and "INSERT INTO orchestration_event" in str(node.value))
    }
    assert writers == {"apps.orchestration.events"}


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_a_snapshot_is_cut_into_messages_of_a_bounded_size(count: int) -> None:
    fleet = [Standing(f"s-{n}", "active", "unhealthy", "probe", "\0" * (n % 200), 1.5) for n in range(count)]
    parts = list(snapshot(fleet))
    assert max(map(len, parts)) <= LARGEST
    read = [msgspec.json.decode(part) for part in parts]
    assert [part["more"] for part in read] == [True] * (len(parts) - 1) + [False]
    assert [row["server_id"] for part in read for row in part["servers"]] == [one.server_id for one in fleet]
    assert (count > 1000) == (len(parts) > 1)


def test_an_event_too_large_is_only_named() -> None:
    small = message_of(Kept(1, "server_drained", "a", AT, {"by": "x" * (LARGEST - 200)}))
    large = message_of(Kept(2, "server_drained", "a", AT, {"by": "x" * LARGEST}))
    unread = message_of(Kept(3, "server_drained", "a", AT, None))
    assert msgspec.json.decode(small.raw)["type"] == "server_drained"
    for told in (large, unread):
        named = {"type": "event_too_large", "id": told.event_id, "server_id": "a", "event": "server_drained"}
        assert msgspec.json.decode(told.raw) == named
