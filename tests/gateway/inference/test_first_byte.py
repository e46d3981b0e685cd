"""How long a server may take for its first byte, by what is known of it and of others."""

from unittest.mock import Mock

import pytest

from apps.gateway.inference.calls.first_byte import TIMES, FirstByte
from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.conditions import Load
from apps.orchestration.health.pace import RATIO, WARM, Key, Paces
from apps.orchestration.health.watch import Watch
from citadel.sections import RoutingSection

LONGEST, SHORTEST = 300.0, 5.0
DEADLINE = 1000.0
NEW, OTHER = Server("new", "http://new", "openai"), Server("other", "http://other", "openai")
KEY, THEIRS = Key("m", "new", False), Key("m", "other", False)


class Worker:
    """What one worker has seen."""

    def __init__(self, deadline: float = DEADLINE) -> None:
        self.paces = Paces()
        self.watch = Mock(spec=Watch, paces={}, loads={})
        self.first_byte = FirstByte(self.paces, self.watch, RoutingSection(), deadline)

    def answers(self, key: Key, count: int, seconds: float) -> None:
        for _ in range(count):
            self.paces[key].answered(seconds, 0.0)

    @property
    def limit(self) -> float:
        return self.first_byte.limit(KEY, NEW)


def near(seconds: float) -> object:
    """In steps, and never less than meant."""
    return pytest.approx(seconds * RATIO, rel=RATIO - 1)


def test_until_anybody_is_known_it_is_the_longest() -> None:
    worker = Worker()
    assert worker.limit == LONGEST
    worker.answers(KEY, WARM - 1, 0.1)
    worker.answers(THEIRS, WARM - 1, 0.1)
    assert worker.limit == LONGEST


def test_a_server_has_had_too_long_before_the_request_itself_has() -> None:
    """Else nothing would be held against a server that hangs, as a plain request gives up as early as that would."""
    worker = Worker(deadline=LONGEST)
    assert LONGEST * 0.9 < worker.limit < LONGEST
    assert worker.first_byte.limit(KEY._replace(streams=True), NEW) == LONGEST
    worker.answers(KEY, WARM, 100.0)
    assert LONGEST * 0.9 < worker.limit < LONGEST


def test_who_is_warm_has_four_times_its_own_p99() -> None:
    worker = Worker()
    worker.answers(THEIRS, WARM, 0.1)
    worker.answers(KEY, WARM, 10.0)
    assert worker.limit == near(TIMES * 10.0)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_who_has_answered_a_few_times_has_what_the_slowest_other_has(elsewhere: bool) -> None:
    """Whether this worker has seen the other's answers or another one."""
    worker = Worker()
    if elsewhere:
        worker.watch.paces = {THEIRS: 0.1, Key("m", "other", True): 50.0, Key("n", "other", False): 50.0}
    else:
        worker.answers(THEIRS, WARM, 0.1)
    assert worker.limit == LONGEST, "it may have to load the model"
    worker.answers(KEY, 1, 0.1)
    assert worker.limit == SHORTEST
    worker.answers(KEY, 1, 8.0)
    worker.watch.paces = dict(worker.watch.paces)
    assert worker.limit == near(TIMES * 8.0 * RATIO), "or what it was seen to need itself"
    worker.paces[KEY].failed(50.0, 0.0)
    worker.watch.paces = dict(worker.watch.paces)
    assert worker.limit == near(TIMES * 8.0 * RATIO), "a failure gives nobody more time"


def test_who_has_the_model_in_memory_need_not_load_it() -> None:
    worker = Worker()
    worker.answers(THEIRS, WARM, 0.1)
    assert worker.limit == LONGEST
    worker.watch.loads = {"new": Load(models=("m",))}
    assert worker.limit == 10.0, "to be found within 15"
    worker.watch.paces = {THEIRS: 10.0}
    assert worker.limit == near(TIMES * 10.0), "nobody has less than the slowest other"
    worker.watch.loads = {"new": Load(models=())}
    assert worker.limit == LONGEST
    worker.answers(KEY, WARM, 0.1)
    assert worker.limit == LONGEST


def test_a_trial_waits_no_longer_than_the_slowest_other_needs() -> None:
    worker = Worker()
    model = Model("m", (NEW, OTHER))
    assert worker.first_byte.limit_of_trial(KEY, NEW, model) == LONGEST
    worker.answers(THEIRS, WARM, 0.1)
    assert worker.first_byte.limit_of_trial(KEY, NEW, model) == SHORTEST


@pytest.mark.parametrize("share", [25, 60])
def test_requests_that_take_longer_than_most_get_their_time_in_the_end(share: int) -> None:
    """One in so many takes a minute, the others half a second."""
    worker = Worker()
    worker.answers(KEY, WARM, 0.5)
    assert worker.limit == SHORTEST
    limits = []
    for number in range(40 * share):
        limit, needed = worker.limit, 60.0 if number % share == 0 else 0.5
        if needed > limit:
            limits.append(limit)
            worker.first_byte.cut(KEY, limit, moves=0)
        else:
            worker.answers(KEY, 1, needed)
            worker.first_byte.answers("new", moves=0)
    assert worker.limit > 60.0
    assert len(limits) <= 8
    assert limits == sorted(limits)


def test_what_waited_in_vain_for_a_server_that_hung_gives_it_no_more_time() -> None:
    worker = Worker()
    worker.answers(KEY, WARM, 0.5)
    for _ in range(WARM):
        worker.first_byte.cut(KEY, SHORTEST, moves=0)
    worker.first_byte.answers("other", moves=0)
    worker.answers(KEY, WARM, 0.5)
    worker.first_byte.answers("new", moves=2)
    worker.first_byte.answers("new", moves=0)
    assert worker.limit == SHORTEST


def test_while_a_server_loads_another_model_nobody_is_given_up_there() -> None:
    """Ollama makes room, and lets requests for what it has thrown out wait."""
    worker, minute = Worker(), 60_000
    worker.answers(KEY, WARM, 0.1)
    worker.watch.loads = {"new": Load(models=("m",), at=1)}
    assert worker.limit == SHORTEST
    assert worker.first_byte.limit(Key("n", "new", False), NEW) == LONGEST
    assert worker.limit == LONGEST
    worker.watch.loads = {"new": Load(models=("m",), at=minute)}
    assert worker.limit == LONGEST, "it has told nothing new"
    worker.watch.loads = {"new": Load(models=("m", "n"), at=minute)}
    assert worker.limit == SHORTEST, "it has room for both"
    worker.first_byte.limit(Key("o", "new", False), NEW)
    worker.watch.loads = {"new": Load(models=("m", "n"), at=2 * minute)}
    assert worker.limit == SHORTEST, "by now it has loaded it, or will not"
