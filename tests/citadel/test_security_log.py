"""The security log: bounded by event, whatever is left out is counted, and no secret is in it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from apps.gateway.access.keys.shape import mint
from citadel import security_log
from citadel.security_log import MOST, Event
from tests.faults.invariants import eventually
from tests.held_up import HELD_UP
from tests.house.modules import ROOT

Lines = list[dict[str, object]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """What is written from now on; nothing has been told in this second."""
    monkeypatch.setattr(security_log, "_bound", security_log._Bound())
    with capture_logs() as found:
        yield found


def test_a_flood_is_bounded_and_what_is_left_out_is_said(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one second, however long the machine takes for it."""
    monkeypatch.setattr(security_log, "time", Mock(monotonic=lambda: 7.0))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: security_log.tell(Event.CREDENTIAL_REFUSED, number=number), range(1000)))
    assert len([line for line in lines if line["event"] == "credential_refused"]) == MOST
    security_log.tell(Event.SIGNED_IN, account="somebody")
    assert "signed_in" in [line["event"] for line in lines], "one kind hides no other"
    eventually(lambda: 1000 - MOST - left_out(lines), within=2 + HELD_UP)
    monkeypatch.setattr(security_log, "time", Mock(monotonic=lambda: 8.0))
    security_log.tell(Event.CREDENTIAL_REFUSED)
    assert lines[-1]["event"] == "credential_refused"


def left_out(lines: Lines) -> int:
    """How many refusals were not told, by what was said of it."""
    return sum(int(str(line["credential_refused"])) for line in lines if line["event"] == "security_events_not_told")


def test_a_flood_costs_next_to_nothing(lines: Lines) -> None:
    before = time.process_time()
    for _ in range(100_000):
        if security_log.is_due(Event.CREDENTIAL_REFUSED):
            security_log.write(Event.CREDENTIAL_REFUSED)
    assert (time.process_time() - before) / 100_000 < 20e-6


def test_of_secrets_the_public_beginning_is_told(lines: Lines) -> None:
    key, key_id = mint()
    for text in (key, key[:-3], key.replace("ctd_", "cts_"), f"/v1/{key}/x", "x" * 1990 + key):
        security_log.tell(Event.ACCESS_DENIED, path=text)
    assert all(key[15:25] not in str(line) for line in lines)
    assert all(key_id in str(line["path"]) for line in lines[:4])
    security_log.tell(Event.ACCESS_DENIED, path="/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl")
    assert lines[-1]["path"] == "/…"
    assert all(len(str(line["path"])) <= security_log.LONGEST for line in lines)


def test_it_is_written_however_little_else_is() -> None:
    program = """
import structlog
from citadel import logs, security_log
logs.configure("error")
structlog.get_logger("citadel.keys").warning("not this")
security_log.tell(security_log.Event.SIGNED_IN, account="somebody", address="")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    [line] = done.stderr.splitlines()
    told = json.loads(line)
    assert told.pop("timestamp")
    assert told == {"event": "signed_in", "level": "info", "logger": "citadel.security", "account": "somebody"}
