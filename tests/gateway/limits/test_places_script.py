"""The part of the script that gives places and lets requests wait for them, by a clock that the test moves."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.gateway.limits.admission import ADMITTED, GLOBAL, REQUESTS, ROOM_IS_FULL, TOO_LONG, WAITS
from apps.gateway.limits.scripts import ADMIT
from apps.orchestration.waiting import WAITING
from tests.gateway.limits.test_admit_script import CLOCK
from tests.instance import Instance

DATABASE = 8
LEASE = 4_000
LOW, NORMAL, HIGH, CRITICAL = range(4)


class Workers:
    """Workers that ask the script, and what they hold."""

    def __init__(self, state: redis.Redis) -> None:
        self.state = state
        self._script, self._counting = (script.text.replace("redis.call('TIME')", CLOCK) for script in (ADMIT, WAITING))
        self.now = 1_700_000_000_000
        self.held: Counter[tuple[str, str]] = Counter()
        """By worker and server."""
        self.waiting: dict[str, str] = {}
        """Tickets and their workers."""
        self._tickets = 0
        self._wanted: dict[str, tuple[object, ...]] = {}
        self.position = self.expected = self.since = 0
        """What the last who asked was told, if it got no place."""
        self.bucket = (0, 0)
        """Requests a minute of all together, and at once."""

    def call(
        self,
        worker: str,
        *,
        released: Sequence[str] = (),
        left: Sequence[str] = (),
        moved: Sequence[Sequence[object]] = (),
        waited: Sequence[Sequence[object]] = (),
        asked: Sequence[object] = (),
        looks_after: bool = True,
    ) -> list[list[int]]:
        arguments: list[object] = [worker, LEASE, *self.bucket, int(looks_after), len(released)]
        for server in released:
            arguments += [f"@{server}", 1]
        arguments += [0, len(waited), *itertools.chain(*waited), 0, len(left), *left]
        arguments += [len(moved), *itertools.chain(*moved), 1 if asked else 0, *asked]
        self._set_clock()
        _, *verdicts = self.state.eval(self._script, 0, *arguments)  # type: ignore[misc, union-attr]
        return verdicts

    def ask(
        self,
        worker: str,
        *servers: tuple[str, int],
        team: str = "t",
        priority: int = NORMAL,
        room: int = 100,
        patience: int = 600_000,
        hold: int = 1,
        age: int = 0,
        requests: int | None = None,
        looks_after: bool = True,
    ) -> tuple[int, str]:
        """The verdict, and the ticket. It was admitted before, unless it is one of so many `requests` a minute of a key
        (0: any number).
        """
        self._tickets += 1
        ticket = f"ticket{self._tickets:03}"
        wanted = (ticket, "m", team, priority, room, patience, hold, age)
        admitted_by = [-1, 0] if requests is None else [1, 0, "key", requests, 0, 0, 0]
        [told] = self.call(worker, asked=[*admitted_by, *wants(wanted, servers)], looks_after=looks_after)
        verdict, _, self.expected, chosen, self.position, self.since, *_ = told
        self._wanted[ticket] = wanted
        if verdict == ADMITTED:
            self.held[worker, servers[chosen][0]] += 1
        elif verdict == WAITS:
            self.waiting[ticket] = worker
        return verdict, ticket

    def move(self, worker: str, tickets: Sequence[str], *servers: tuple[str, int]) -> None:
        """The tickets wait for these servers from now on."""
        self.call(worker, moved=[wants(self._wanted[ticket], servers) for ticket in tickets])

    def turn_out(self, worker: str, *since: int) -> None:
        """Requests of the key, admitted then, have waited for nothing."""
        self.call(worker, waited=[(moment, 1, "key") for moment in since])

    def free(self, worker: str, server: str) -> None:
        self.held[worker, server] -= 1
        self.call(worker, released=[server])

    def granted(self, worker: str) -> list[str]:
        """The tickets whose turn has come, in this order; those that were turned out are `-ticket`."""
        tickets = []
        while told := self.state.lpop(f"limits:grants:{worker}"):
            ticket, _, server = told.decode().partition(" ")
            self.waiting.pop(ticket, None)
            if server:
                self.held[worker, server] += 1
            tickets.append(ticket if server else f"-{ticket}")
        return tickets

    def waiting_for(self, server: str) -> int:
        """As everybody is told."""
        self._set_clock()
        flat = self.state.eval(self._counting, 0)
        return dict(zip(flat[::2], flat[1::2], strict=True)).get(server.encode(), 0)  # type: ignore[misc, index]

    def _set_clock(self) -> None:
        self.state.mset({"second": self.now // 1000, "microsecond": self.now % 1000 * 1000})

    def at_once(self, server: str) -> int:
        return sum(count for (_, name), count in self.held.items() if name == server)


def wants(wanted: Sequence[object], servers: Sequence[tuple[str, int]]) -> list[object]:
    """As the script takes it."""
    return [len(servers), *wanted, *itertools.chain(*servers)]


@pytest.fixture
def workers(citadel: Instance) -> Iterator[Workers]:
    with redis.Redis.from_url(re.sub(r"db=\d+", f"db={DATABASE}", citadel.redis_url)) as state:
        assert state.get_connection_kwargs()["db"] == DATABASE, "the running Citadel's own data would be lost"
        state.flushdb()
        yield Workers(state)
        state.flushdb()


def test_the_first_server_with_a_place_is_taken(workers: Workers) -> None:
    for _ in range(3):
        assert workers.ask("w", ("a", 1), ("b", 2))[0] == ADMITTED
    assert workers.held == {("w", "a"): 1, ("w", "b"): 2}
    assert workers.ask("w", ("a", 1), ("b", 2))[0] == WAITS


def test_behind_full_servers_one_without_a_limit_takes_all(workers: Workers) -> None:
    assert [workers.ask("w", ("a", 1), ("free", 0))[0] for _ in range(50)] == [ADMITTED] * 50
    assert workers.at_once("a") == 1


def test_who_frees_a_place_hands_it_to_the_next_whatever_worker_he_is_of(workers: Workers) -> None:
    workers.ask("w1", ("a", 1))
    _, second = workers.ask("w2", ("a", 1))
    _, third = workers.ask("w1", ("a", 1))
    workers.free("w1", "a")
    assert workers.granted("w2") == [second]
    assert workers.granted("w1") == []
    assert workers.ask("w3", ("a", 1))[0] == WAITS, "the place is taken already"
    workers.free("w2", "a")
    assert workers.granted("w1") == [third]


def test_only_those_are_told_to_wait_whose_worker_lives(workers: Workers) -> None:
    """What a dead one has left behind is cleared when it comes to the head of its line, which may take hours."""
    workers.ask("w", ("a", 1))
    for worker, team in (("w", "t"), ("killed", "t"), ("killed", "t"), ("killed", "another")):
        assert workers.ask(worker, ("a", 1), team=team)[0] == WAITS
    assert workers.waiting_for("a") == 4
    workers.now += LEASE - 1
    workers.call("w")
    workers.now += 2
    assert workers.waiting_for("a") == 1
    assert workers.waiting_for("b") == 0


def test_higher_priorities_come_first(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    tickets = {priority: workers.ask("w", ("a", 1), priority=priority)[1] for priority in (LOW, HIGH, NORMAL, CRITICAL)}
    turns = []
    for _ in range(4):
        workers.free("w", "a")
        turns += workers.granted("w")
    assert turns == [tickets[priority] for priority in (CRITICAL, HIGH, NORMAL, LOW)]


def test_two_teams_share_evenly_though_one_floods(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    owner = {workers.ask("w", ("a", 1), team="flood")[1]: "flood" for _ in range(40)}
    owner |= {workers.ask("w", ("a", 1), team="calm")[1]: "calm" for _ in range(10)}
    turns = []
    for _ in range(20):
        workers.free("w", "a")
        turns += [owner[ticket] for ticket in workers.granted("w")]
    assert Counter(turns) == {"flood": 10, "calm": 10}


def test_who_came_late_is_not_behind_all_that_a_team_has_had_before(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    for _ in range(30):
        workers.ask("w", ("a", 1), team="old")
    for _ in range(20):
        workers.free("w", "a")
        workers.granted("w")
    _, new = workers.ask("w", ("a", 1), team="new")
    turns = []
    for _ in range(2):
        workers.free("w", "a")
        turns += workers.granted("w")
    assert new in turns


def test_a_full_room_turns_away_unless_a_better_one_comes(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    _, first = workers.ask("w", ("a", 1), room=2)
    _, last = workers.ask("w", ("a", 1), room=2, priority=LOW)
    assert workers.ask("w", ("a", 1), room=2, priority=LOW)[0] == ROOM_IS_FULL
    verdict, better = workers.ask("w", ("a", 1), room=2, priority=HIGH)
    assert verdict == WAITS
    assert workers.granted("w") == [f"-{last}"]
    workers.free("w", "a")
    assert workers.granted("w") == [better]
    assert first in workers.waiting


def test_who_is_put_out_of_the_room_has_used_up_none_of_his_requests_a_minute(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    since = []
    for _ in range(2):
        assert workers.ask("w", ("a", 1), priority=LOW, room=2, requests=2)[0] == WAITS
        since.append(workers.since)
        workers.now += 10
    assert workers.ask("w", ("a", 1), priority=LOW, requests=2)[0] == REQUESTS
    better = [workers.ask("w", ("a", 1), priority=HIGH, room=2)[1] for _ in range(2)]
    assert len(workers.granted("w")) == 2
    workers.turn_out("w", *since)
    workers.call("w", left=better)
    workers.free("w", "a")
    assert [workers.ask("w", ("a", 2), requests=2)[0] for _ in range(3)] == [ADMITTED, ADMITTED, REQUESTS]


def test_of_a_window_the_very_moment_is_given_back_at_which_he_came_who_waited(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    came, since = workers.now, []
    for _ in range(3):
        workers.ask("w", ("a", 1), requests=3)
        since.append(workers.since)
        workers.now += 1_000
    assert since == [came, came + 1_000, came + 2_000]
    workers.turn_out("w", since[1], since[1] + 1)  # of the one nothing is in the window, as after 60 s
    workers.ask("w", ("a", 1), requests=3)
    assert workers.ask("w", ("a", 1), requests=3)[0] == REQUESTS
    assert workers.expected == came + 60_000 - workers.now
    workers.now = came + 60_000
    workers.ask("w", ("a", 1), requests=3)
    assert workers.ask("w", ("a", 1), requests=3)[0] == REQUESTS
    assert workers.expected == 2_000, "the third is still there"


def test_who_waits_in_vain_gives_back_what_he_took_of_the_bucket_of_all(workers: Workers) -> None:
    workers.bucket = (1, 3)
    workers.ask("w", ("a", 1))
    since = []
    for _ in range(3):
        assert workers.ask("w", ("a", 1), requests=0)[0] == WAITS
        since.append(workers.since)
    assert workers.ask("w", ("a", 1), requests=0)[0] == GLOBAL
    workers.call("w", waited=[(0, 0)])  # one has its place
    workers.turn_out("w", *since[:2])
    assert [workers.ask("w", ("free", 0), requests=0)[0] for _ in range(3)] == [ADMITTED, ADMITTED, GLOBAL]


def test_a_bucket_that_was_full_again_meanwhile_is_given_nothing_back(workers: Workers) -> None:
    """Else 60 s could see more than what it holds and what it gains in them."""
    workers.bucket = (60, 3)
    workers.ask("w", ("a", 1))
    since = []
    for _ in range(3):
        assert workers.ask("w", ("a", 1), requests=0)[0] == WAITS
        since.append(workers.since)
    workers.now += 3_000
    assert [workers.ask("w", ("free", 0), requests=0)[0] for _ in range(4)] == [ADMITTED] * 3 + [GLOBAL]
    workers.turn_out("w", *since)
    assert workers.ask("w", ("free", 0), requests=0)[0] == GLOBAL


def test_a_full_room_is_shared_between_teams(workers: Workers) -> None:
    """Who has most in it makes room for who has few, by its last; never so that nothing is won."""
    workers.ask("w", ("a", 1))
    flood = [workers.ask("w", ("a", 1), team="flood", room=6)[1] for _ in range(6)]
    calm = [workers.ask("w", ("a", 1), team="calm", room=6) for _ in range(4)]
    assert [verdict for verdict, _ in calm] == [WAITS] * 3 + [ROOM_IS_FULL]
    assert workers.granted("w") == [f"-{ticket}" for ticket in reversed(flood[3:])]
    assert workers.ask("w", ("a", 1), team="flood", room=6)[0] == ROOM_IS_FULL
    turns = []
    for _ in range(6):
        workers.free("w", "a")
        turns += workers.granted("w")
    assert sorted(turns[:2]) == sorted([flood[0], calm[0][1]])
    assert sorted(turns[2:4]) == sorted([flood[1], calm[1][1]])


def test_the_lowest_priority_makes_room_first_though_others_have_more(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    for _ in range(4):
        workers.ask("w", ("a", 1), team="many", room=5)
    _, low = workers.ask("w", ("a", 1), team="few", room=5, priority=LOW)
    assert workers.ask("w", ("a", 1), team="few", room=5)[0] == WAITS
    assert workers.granted("w") == [f"-{low}"]
    assert workers.ask("w", ("a", 1), team="few", room=5, priority=LOW)[0] == ROOM_IS_FULL


def test_position_and_expected_wait_are_those_of_its_turn_not_of_its_arrival(workers: Workers) -> None:
    workers.ask("w", ("a", 2))
    workers.ask("w", ("a", 2))
    for number in range(1, 9):
        workers.ask("w", ("a", 2), team="flood", hold=1_000)
        assert (workers.position, workers.expected) == (number, number * 500)
    workers.ask("w", ("a", 2), team="calm", hold=1_000)
    assert (workers.position, workers.expected) == (2, 1_000)
    workers.ask("w", ("a", 2), team="calm", hold=1_000)
    assert (workers.position, workers.expected) == (4, 2_000)
    workers.ask("w", ("a", 2), team="flood", priority=HIGH)
    assert workers.position == 1
    workers.ask("w", ("a", 2), team="third", priority=LOW)
    assert workers.position == 12


def test_however_many_wait_of_one_team_another_ones_wait_is_not_too_long(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    while workers.ask("w", ("a", 1), team="flood", patience=5_000, hold=1_000)[0] == WAITS:
        pass
    assert workers.ask("w", ("a", 1), team="calm", patience=5_000, hold=1_000)[0] == WAITS


def test_who_gives_up_is_not_held_against_its_team(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    gone = [workers.ask("w", ("a", 1), team="gone")[1] for _ in range(20)]
    for _ in range(5):
        workers.ask("w", ("a", 1), team="other")
    workers.call("w", left=gone)
    _, again = workers.ask("w", ("a", 1), team="gone")
    turns = []
    for _ in range(2):
        workers.free("w", "a")
        turns += workers.granted("w")
    assert again in turns


def test_who_waits_for_other_servers_keeps_his_place_in_the_line(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    tickets = [workers.ask(f"w{number % 2}", ("a", 1))[1] for number in range(6)]
    workers.ask("w", ("b", 1))
    for worker in (1, 0):
        workers.move(f"w{worker}", tickets[worker::2], ("b", 1))
    turns = []
    for number in range(6):
        workers.free(f"w{(number + 1) % 2}" if number else "w", "b")
        turns += workers.granted("w0") + workers.granted("w1")
    assert turns == tickets
    workers.free("w", "a")
    assert workers.ask("w", ("a", 1))[0] == ADMITTED, "nobody waits for it any more"


def test_places_of_a_server_that_comes_are_given_in_order(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    low, *normal = [workers.ask("w", ("a", 1), priority=priority)[1] for priority in (LOW, NORMAL, NORMAL)]
    workers.move("w", [low, *reversed(normal)], ("a", 1), ("new", 2))
    assert workers.granted("w") == normal
    assert workers.held == {("w", "a"): 1, ("w", "new"): 2}
    assert low in workers.waiting


def test_places_of_a_limit_that_is_raised_are_given_at_once(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    tickets = [workers.ask("w", ("a", 1))[1] for _ in range(4)]
    workers.move("w", tickets, ("a", 3))
    assert workers.granted("w") == tickets[:2]
    workers.free("w", "a")
    assert workers.granted("w") == tickets[2:3]


def test_who_moves_after_his_turn_came_is_next_elsewhere(workers: Workers) -> None:
    """The worker gives the place of the server back that is no longer there, when it hears of it."""
    workers.ask("w", ("a", 1))
    _, ticket = workers.ask("w", ("a", 1))
    workers.ask("w", ("b", 1))
    _, later = workers.ask("w", ("b", 1))
    workers.free("w", "a")
    workers.move("w", [ticket], ("b", 1))
    assert workers.granted("w") == [ticket]
    workers.free("w", "a")
    turns = []
    for _ in range(3):
        workers.free("w", "b")
        turns += workers.granted("w")
    assert turns == [ticket, later], "it had its turn before"
    assert {key.decode() for key in workers.state.keys("limits:*")} == {"limits:workers"}


def test_who_asks_again_is_in_line_by_his_arrival(workers: Workers) -> None:
    """As one whose server has failed: he goes before those who came later, and after those who came before."""
    workers.ask("w", ("b", 1))
    _, earlier = workers.ask("w", ("b", 1))
    workers.now += 10
    workers.ask("w", ("a", 1))
    workers.now += 10
    later = [workers.ask("w", ("a", 1), ("b", 1))[1] for _ in range(3)]
    workers.now += 100
    _, again = workers.ask("w", ("b", 1), age=110, hold=1_000)
    assert (workers.position, workers.expected) == (2, 2_000)
    workers.move("w", later, ("b", 1))
    turns = []
    for _ in range(5):
        workers.free("w", "b")
        turns += workers.granted("w")
    assert turns == [earlier, again, *later]


def test_in_a_full_room_the_last_of_a_team_makes_room_for_one_who_came_before(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    tickets = []
    for _ in range(3):
        workers.now += 10
        tickets.append(workers.ask("w", ("a", 1), room=3)[1])
    assert workers.ask("w", ("a", 1), room=3)[0] == ROOM_IS_FULL
    verdict, again = workers.ask("w", ("a", 1), room=3, age=15)
    assert verdict == WAITS
    assert workers.granted("w") == [f"-{tickets[2]}"]
    assert workers.ask("w", ("a", 1), room=3, age=5)[0] == ROOM_IS_FULL, "it is the last itself"
    turns = []
    for _ in range(3):
        workers.free("w", "a")
        turns += workers.granted("w")
    assert turns == [tickets[0], again, tickets[1]]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 500), st.integers(0, 50)), max_size=30))
def test_teams_take_turns_and_each_ones_requests_come_by_their_arrival(
    workers: Workers, asked: list[tuple[str, int, int]]
) -> None:
    workers.state.flushdb()
    workers.__init__(workers.state)  # type: ignore[misc]  # begins anew
    workers.ask("w", ("a", 1))
    arrivals: dict[str, tuple[str, int]] = {}
    for team, age, pause in asked:
        arrivals[workers.ask("w", ("a", 1), team=team, age=age)[1]] = (team, workers.now - age)
        workers.now += pause
    turns = []
    for _ in asked:
        workers.free("w", "a")
        turns += [arrivals[ticket] for ticket in workers.granted("w")]
    for team in "xyz":
        own = [arrived for name, arrived in turns if name == team]
        assert own == sorted(own)
    left = Counter(team for team, _, _ in asked)
    had: Counter[str] = Counter()
    for team, _ in turns:
        had[team] += 1
        left[team] -= 1
        waiting = [name for name in left if left[name]]
        assert all(had[team] <= had[name] + 1 for name in waiting)


def test_the_dead_do_not_fill_the_room(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    for _ in range(3):
        workers.ask("dead", ("a", 1), room=3)
    workers.now += 1
    assert workers.ask("w", ("a", 1), room=3)[0] == ROOM_IS_FULL
    workers.now += LEASE - 1
    assert workers.ask("w", ("a", 1), room=3)[0] == WAITS


def test_a_wait_that_would_be_too_long_is_refused(workers: Workers) -> None:
    workers.ask("w", ("a", 2))
    workers.ask("w", ("a", 2))
    verdicts = [workers.ask("w", ("a", 2), patience=3_000, hold=1_000)[0] for _ in range(8)]
    assert verdicts == [WAITS] * 6 + [TOO_LONG] * 2, "two places a second: the seventh would wait for 3.5"


def test_of_many_places_the_first_is_expected_long_before_all_have_been_free(workers: Workers) -> None:
    """Eight that are held for 40 s: one is free every 5 s."""
    servers = ("a", 4), ("b", 4)
    assert [workers.ask("w", *servers)[0] for _ in range(8)] == [ADMITTED] * 8
    for number in range(1, 7):
        assert workers.ask("w", *servers, hold=40_000, patience=30_000)[0] == WAITS
        assert (workers.position, workers.expected) == (number, number * 5_000)
    assert workers.ask("w", *servers, hold=40_000, patience=30_000)[0] == TOO_LONG


def test_who_gives_up_is_passed_over(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    _, gone = workers.ask("w", ("a", 1))
    _, next_one = workers.ask("w", ("a", 1))
    workers.call("w", left=[gone])
    workers.free("w", "a")
    assert workers.granted("w") == [next_one]


def test_a_dead_workers_places_are_free_and_its_tickets_worth_nothing(workers: Workers) -> None:
    workers.ask("dead", ("a", 2))
    workers.ask("dead", ("a", 2))
    workers.ask("dead", ("a", 2))
    workers.now += 1
    _, mine = workers.ask("w", ("a", 2))
    workers.now += LEASE - 1
    workers.call("w")
    assert workers.granted("w") == [mine]
    assert workers.granted("dead") == []
    assert workers.ask("w", ("a", 2))[0] == ADMITTED


def test_a_dead_workers_place_is_theirs_who_wait_before_one_who_comes(workers: Workers) -> None:
    """Though nobody has looked after them since its lease ended."""
    workers.ask("dead", ("a", 1))
    workers.now += 1
    _, waits = workers.ask("w", ("a", 1), priority=CRITICAL)
    workers.now += LEASE - 1
    assert workers.ask("another", ("a", 1), priority=LOW, looks_after=False)[0] == WAITS
    assert workers.granted("w") == [waits]


def test_what_those_who_wait_leave_of_free_places_is_taken_at_once(workers: Workers) -> None:
    for _ in range(3):
        workers.ask("dead", ("a", 3))
    workers.now += 1
    _, waits = workers.ask("w", ("a", 3))
    workers.now += LEASE - 1
    verdicts = [workers.ask("another", ("a", 3), looks_after=False)[0] for _ in range(3)]
    assert verdicts == [ADMITTED, ADMITTED, WAITS]
    assert workers.granted("w") == [waits]


def test_a_limit_that_was_raised_is_theirs_who_wait_before_one_who_knows_of_it_first(workers: Workers) -> None:
    workers.ask("w", ("a", 1))
    _, waits = workers.ask("w", ("a", 1))
    assert workers.ask("another", ("a", 2), looks_after=False)[0] == WAITS
    assert workers.granted("w") == [waits]


def test_nothing_is_left_of_a_room_that_is_empty(workers: Workers) -> None:
    workers.ask("w", ("a", 1), ("b", 1))
    workers.ask("w", ("a", 1), ("b", 1))
    for _ in range(3):
        workers.ask("w", ("a", 1), ("b", 1))
    for server in ("a", "b", "a"):
        workers.free("w", server)
        workers.granted("w")
    for server in ("a", "b"):
        while workers.held["w", server]:
            workers.free("w", server)
    assert {key.decode() for key in workers.state.keys("limits:*")} == {"limits:workers"}


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("ask"),
            st.sampled_from(["w1", "w2", "w3"]),
            st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True),
            st.integers(0, 3),
            st.sampled_from(["t1", "t2"]),
        ),
        st.tuples(st.just("free"), st.integers(0, 50)),
        st.tuples(
            st.just("move"),
            st.integers(0, 50),
            st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True),
        ),
        st.tuples(st.just("leave"), st.integers(0, 50)),
        st.tuples(st.just("beat"), st.sampled_from(["w1", "w2", "w3"])),
    ),
    max_size=40,
)
LIMITS = {"a": 1, "b": 2, "c": 3}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_no_server_ever_has_more_than_its_limit_and_no_place_stays_free_while_somebody_waits(
    workers: Workers, steps: list[tuple[object, ...]]
) -> None:
    workers.state.flushdb()
    workers.__init__(workers.state)  # type: ignore[misc]  # begins anew
    needs: dict[str, list[str]] = {}
    for kind, *details in steps:
        if kind == "ask":
            worker, servers, priority, team = details
            named = [(name, LIMITS[name]) for name in servers]  # type: ignore[attr-defined]
            _, ticket = workers.ask(worker, *named, priority=priority, team=team, room=5)  # type: ignore[arg-type]
            needs[ticket] = servers  # type: ignore[assignment]
        elif kind == "beat":
            workers.call(details[0])  # type: ignore[arg-type]
        elif kind == "leave" and workers.waiting:
            ticket = sorted(workers.waiting)[details[0] % len(workers.waiting)]  # type: ignore[operator]
            workers.call(workers.waiting.pop(ticket), left=[ticket])
        elif kind == "move" and workers.waiting:
            ticket = sorted(workers.waiting)[details[0] % len(workers.waiting)]  # type: ignore[operator]
            needs[ticket] = details[1]  # type: ignore[assignment]
            named = [(name, LIMITS[name]) for name in needs[ticket]]
            workers.move(workers.waiting[ticket], [ticket], *named)
        elif kind == "free" and (taken := sorted(workers.held.elements())):
            workers.free(*taken[details[0] % len(taken)])  # type: ignore[operator]
        for worker in ("w1", "w2", "w3"):
            workers.granted(worker)
        for server, limit in LIMITS.items():
            assert workers.at_once(server) <= limit
        for ticket in workers.waiting:
            assert all(workers.at_once(server) == LIMITS[server] for server in needs[ticket]), "a place is free"
