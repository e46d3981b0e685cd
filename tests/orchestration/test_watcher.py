"""Whatever is lost on the way to who watches, each event is told once."""

import random

from hypothesis import given
from hypothesis import strategies as st

from apps.orchestration.watcher import EVENTS_WAITING, OVERLAP, Told, Watcher


def told(event_id: int) -> Told:
    return Told(event_id, str(event_id).encode())


def read(watcher: Watcher, kept: list[int]) -> list[int]:
    """What it is told now, with what it reads of the events that are `kept`."""
    got = [int(raw) for raw in watcher.waiting()]
    if watcher.is_behind:
        low, _ = watcher.resume()
        got += [int(raw) for event in sorted(kept) if event > low for raw in watcher.new(told(event))]
    return got


def shuffled(count: int, seed: int) -> list[int]:
    """Ids in the order in which their events can be seen: nearly their own."""
    return sorted(range(1, count + 1), key=lambda number: number + random.Random(f"{seed}-{number}").uniform(0, 8))


@given(
    st.integers(1, 3 * EVENTS_WAITING),
    st.integers(0, 1000),
    st.lists(st.sampled_from(["heard", "heard", "unheard", "read", "away", "back"]), max_size=60),
    st.integers(1, 40),
)
def test_each_event_is_told_once(count: int, seed: int, steps: list[str], stride: int) -> None:
    order, kept, got = shuffled(count, seed), [0], []
    watcher = Watcher(0)
    watcher.catch_up(0)
    away = False
    for step in [*steps, "back", "read"]:
        if step in ("heard", "unheard"):
            some, order = order[:stride], order[stride:]
            kept += some
            if step == "heard" and not away:
                for event in some:
                    watcher.tell_event(told(event))
            else:
                away = True  # an event that was not heard is noticed, and all is read again
                watcher.tell_away(b"0")
        elif step == "back":
            away = False
            watcher.catch_up(max(kept))
        elif step == "read":
            got += [event for event in read(watcher, kept) if event]
    assert sorted(got) == sorted(kept[1:])


@given(st.integers(0, 10 * EVENTS_WAITING))
def test_what_waits_is_bounded(count: int) -> None:
    watcher = Watcher(0)
    for event in range(1, count + 1):
        watcher.tell_event(told(event))
        watcher.tell_server("a", b"%d" % event)
    waiting = list(watcher.waiting())
    assert len(waiting) <= EVENTS_WAITING + 1
    assert watcher.is_behind == (count > EVENTS_WAITING)
    assert not count or waiting[0] == b"%d" % count


def test_who_names_no_id_begins_with_what_comes() -> None:
    watcher = Watcher(None)
    watcher.catch_up(70)
    assert watcher.resume() == (70, 70)
    watcher.tell_event(told(71))
    assert list(watcher.waiting()) == [b"71"]
    watcher.tell_away(b"away")
    watcher.catch_up(2 * OVERLAP)
    assert watcher.resume() == (70, 71)


def test_who_was_in_touch_all_the_time_is_not_told_that_it_is() -> None:
    watcher = Watcher(5)
    watcher.catch_up(5)
    assert watcher.resume() == (5, 5)
    watcher.catch_up(9)
    assert watcher.resume() == (5, None)
