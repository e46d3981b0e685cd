"""What traffic says of a server, by any history: when it is out, when it may be tried, by how many."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apps.orchestration.health.conditions import Bar
from apps.orchestration.health.evidence import NO_MATTER
from apps.orchestration.health.passive import LAST_FOR, Standings
from apps.orchestration.health.standing import DEGRADING_SHARE, EJECTING_SHARE, PROVEN_FOR
from apps.orchestration.health.trials import FIRST_BACKOFF, LONELY_BACKOFF
from apps.orchestration.health.window import ENOUGH, NONE, WINDOW, Tally

EJECT_AFTER, MAX_BACKOFF, TRIAL_LIMIT = 3, 30.0, 60.0
ENOUGH_ARE_OUT, ALONE = NO_MATTER._replace(may_eject=False), NO_MATTER._replace(alone=True)


@pytest.fixture
def standings() -> Standings:
    return new()


def new() -> Standings:
    return Standings(eject_after=EJECT_AFTER, max_backoff=MAX_BACKOFF, trial_limit=TRIAL_LIMIT)


def ejected(at: float = 0.0) -> Standings:
    standings = new()
    assert standings.failed("s", at, "refused") == "ejected"
    return standings


def fail_trials(standings: Standings, count: int, now: float = 0.0) -> tuple[list[float], float]:
    """Tries as soon as it may be, in vain; gives the pauses and the time."""
    pauses = []
    for _ in range(count):
        pause = standings.retry_in("s", now)
        pauses.append(pause)
        now += pause
        assert standings.trial_due("s", now)
        standings.begin_trial("s", now)
        assert standings.failed("s", now, trial=True) == "", "it was out already"
    return pauses, now


@given(st.lists(st.sampled_from(["good", "bad", "refused"]), max_size=30))
@example(["bad", "bad", "good", "bad", "bad", "bad"])
def test_it_goes_out_after_so_many_failures_in_a_row_or_one_refusal(history: list[str]) -> None:
    """Only while it is in: what comes of requests that were under way when it went out is another matter."""
    standings, in_a_row = new(), 0
    for now, event in enumerate(history):
        if event == "good":
            expected = "answers" if in_a_row else ""
            assert standings.succeeded("s", float(now)) == expected, "it was never out"
            in_a_row = 0
            continue
        in_a_row += 1
        goes_out = event == "refused" or in_a_row >= EJECT_AFTER
        verdict = standings.failed("s", float(now), "refused" if event == "refused" else "failed")
        assert (verdict == "ejected") is goes_out
        assert standings.in_rotation("s") is not goes_out
        assert standings.in_rotation("another")
        if goes_out:
            return


def test_trials_come_after_1_2_4_seconds_and_never_further_apart_than_the_longest() -> None:
    pauses, _ = fail_trials(ejected(), 8)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


@given(failed=st.integers(0, 10), waited=st.floats(0, 40))
def test_while_its_model_has_no_other_the_pause_stays_short(failed: int, waited: float) -> None:
    standings = ejected()
    _, now = fail_trials(standings, failed)
    pause = min(FIRST_BACKOFF * 2**failed, MAX_BACKOFF)
    assert standings.trial_due("s", now + waited) is (waited >= pause)
    assert standings.trial_due("s", now + waited, lonely=True) is (waited >= min(pause, LONELY_BACKOFF))


@given(asked=st.lists(st.floats(0, 2 * TRIAL_LIMIT), max_size=10))
def test_one_trial_at_a_time(asked: list[float]) -> None:
    standings = ejected()
    standings.begin_trial("s", 1.0)
    for after in asked:
        assert standings.trial_due("s", 1.0 + after) is (after >= TRIAL_LIMIT), "a trial that never ends is given up"


@pytest.mark.parametrize("end", ["success", "failure", "client left"])
def test_a_trial_that_has_ended_makes_room(standings: Standings, end: str) -> None:
    standings = ejected()
    standings.begin_trial("s", 1.0)
    if end == "success":
        assert standings.succeeded("s", 1.5, trial=True) == "returned"
        assert standings.in_rotation("s")
        assert standings.failed("s", 2.0) == "", "its past is forgotten"
    elif end == "failure":
        standings.failed("s", 2.0, trial=True)
        assert not standings.trial_due("s", 3.9)
        assert standings.trial_due("s", 4.0)
    else:
        standings.abandon_trial("s")
        assert standings.trial_due("s", 1.0)


@given(late=st.integers(0, 20))
def test_failures_of_what_was_under_way_when_it_went_out_say_nothing_new(late: int) -> None:
    standings = ejected()
    for _ in range(late):
        assert standings.failed("s", 0.5) == ""
    assert standings.retry_in("s", 0.5) == 0.5


def test_nor_do_they_end_a_trial(standings: Standings) -> None:
    standings = ejected()
    standings.begin_trial("s", 1.0)
    standings.failed("s", 1.5)
    assert not standings.trial_due("s", 2.0)


def test_servers_that_are_gone_are_forgotten(standings: Standings) -> None:
    for name in ("kept", "gone"):
        standings.failed(name, 0.0, "refused")
    standings.forget_all_but(frozenset({"kept"}))
    assert not standings.in_rotation("kept")
    assert standings.in_rotation("gone")


def test_what_is_healthy_leaves_no_trace(standings: Standings) -> None:
    standings.failed("s", 0.0)
    for now in (1.0, 16.0, 32.0):  # until nothing of the failure is in its window
        assert standings["s"] is not None
        standings.succeeded("s", now)
    assert standings["s"] is None
    assert standings.trial_due("s", 131.0) is True
    standings.begin_trial("s", 131.0)
    assert standings["s"] is None


@given(st.lists(st.booleans(), min_size=ENOUGH, max_size=60))
def test_more_than_a_tenth_of_bad_answers_is_too_many(answers: list[bool]) -> None:
    """Counted from the first bad one on, and from enough answers on; two in a row are not yet too many here."""
    standings = Standings(eject_after=10_000, max_backoff=MAX_BACKOFF, trial_limit=TRIAL_LIMIT)
    counted: list[bool] = []
    for good in answers:
        if counted or not good:
            counted.append(good)
        verdict = standings.succeeded("s", 1.0) if good else standings.failed("s", 1.0)
        share = counted.count(False) / len(counted) if len(counted) >= ENOUGH else 0.0
        if not good and share > EJECTING_SHARE:
            assert verdict == "ejected"
            return
        assert verdict != "ejected"
        assert (verdict == "degraded") <= (share > DEGRADING_SHARE)


def degraded(standings: Standings) -> None:
    for _ in range(2 * ENOUGH):
        verdict = standings.failed("s", 0.0, company=ENOUGH_ARE_OUT)
    assert verdict == ""


def test_it_is_degraded_no_more_when_nothing_fails_though_it_has_little_to_do(standings: Standings) -> None:
    degraded(standings)
    assert [standings.succeeded("s", now) for now in (1.0, 31.0)] == ["answers", "recovered"]
    assert standings["s"] is None


def test_that_it_is_degraded_is_said_again_while_it_is(standings: Standings) -> None:
    degraded(standings)
    seconds = [float(second) for second in range(1, 200) for _ in range(5)]
    verdicts = [standings.failed("s", second, company=ENOUGH_ARE_OUT) for second in seconds]
    assert [second for second, verdict in zip(seconds, verdicts, strict=True) if verdict] == [60.0, 120.0, 180.0]


def test_what_may_not_be_ejected_is_degraded_at_most(standings: Standings) -> None:
    verdicts = [standings.failed("s", 0.0, company=ENOUGH_ARE_OUT) for _ in range(2 * ENOUGH)]
    assert set(verdicts) == {"", "degraded"}
    assert standings.in_rotation("s")
    assert standings.pauses.is_paused("s", "m", LAST_FOR - 0.1), "others are asked before it"
    assert not standings.pauses.is_paused("s", "m", LAST_FOR)
    assert standings.failed("s", 5.0, company=ENOUGH_ARE_OUT) == ""
    assert standings.pauses.is_paused("s", "m", 5.0), "until it answers, after each failure"
    assert standings.failed("s", 0.0, "refused", ENOUGH_ARE_OUT) == "ejected", "that is no opinion"


def test_who_is_alone_goes_out_only_when_nothing_works_any_more() -> None:
    standings = Standings(eject_after=EJECT_AFTER, max_backoff=MAX_BACKOFF, trial_limit=TRIAL_LIMIT)
    for _ in range(2 * ENOUGH):  # every second one fails
        assert standings.failed("s", 0.0, company=ALONE) in ("", "degraded")
        standings.succeeded("s", 0.0)
    verdicts = [standings.failed("s", 0.0, company=ALONE) for _ in range(EJECT_AFTER)]
    assert verdicts[-1] == "ejected"


@pytest.mark.parametrize("alone", [False, True])
def test_who_is_alone_stays_in_while_the_requests_themselves_may_be_to_blame(*, alone: bool) -> None:
    standings, company = new(), ALONE if alone else NO_MATTER
    for second in range(0, 60, 5):
        for _ in range(2 * EJECT_AFTER):
            out = standings.failed("s", float(second), "told", company) == "ejected"
            assert out <= (not alone)
        standings.succeeded("s", float(second), trial=not standings.in_rotation("s"))
    assert standings.in_rotation("s")
    for _ in range(2 * EJECT_AFTER):
        standings.failed("s", 100.0, "told", company)
    assert standings.in_rotation("s") is alone
    standings.failed("s", 100.0 + PROVEN_FOR, "told", company)
    assert not standings.in_rotation("s"), "nothing works any more"


def test_a_failure_that_was_the_requests_own_is_forgiven(standings: Standings) -> None:
    for _ in range(4 * EJECT_AFTER):
        standings.failed("s", 0.0)
        standings.forgive("s")
    assert standings.in_rotation("s")


def test_the_board_puts_out_and_brings_back(standings: Standings) -> None:
    standings.follow({"s": ""}, asked_at=0.0, now=1.0)
    assert not standings.in_rotation("s")
    assert standings.trial_due("s", 1.0 + FIRST_BACKOFF)
    standings.follow({"s": ""}, asked_at=2.0, now=3.0)
    assert not standings.in_rotation("s")
    standings.follow({}, asked_at=4.0, now=5.0)
    assert standings.in_rotation("s")


def test_an_old_look_at_the_board_takes_nothing_back(standings: Standings) -> None:
    standings.failed("s", 1.0, "refused")
    standings.follow({}, asked_at=0.5, now=1.1)
    assert not standings.in_rotation("s"), "the board did not know it yet"
    standings.put_out("s", 1.2)
    standings.follow({}, asked_at=1.1, now=1.3)
    assert not standings.in_rotation("s"), "it was asked before it knew"
    standings.follow({}, asked_at=1.4, now=1.5)
    assert standings.in_rotation("s")


def test_good_answers_count_for_more_than_bad_probes(standings: Standings) -> None:
    standings.follow({"s": ""}, asked_at=0.0, now=0.0)
    standings.succeeded("s", 2.0)
    for now in (2.5, 3.0, 2.0 + PROVEN_FOR):
        standings.follow({"s": ""}, asked_at=now, now=now)
        assert standings.in_rotation("s")
    standings.follow({"s": ""}, asked_at=13.0, now=13.0)
    assert not standings.in_rotation("s"), "that is too long ago"


@pytest.mark.parametrize("bar", ["", "failing"])
def test_the_board_puts_out_who_fails_now_and_then_and_answers_in_between(standings: Standings, bar: Bar) -> None:
    """Its probes say so, or other workers, which see more failures."""
    standings.failed("s", 0.0)
    standings.succeeded("s", 0.5)
    standings.follow({"s": bar}, asked_at=1.0, now=1.0)
    assert not standings.in_rotation("s")


@pytest.mark.parametrize("silent", [False, True])
def test_of_what_was_under_way_a_good_answer_disproves_silence_alone(standings: Standings, *, silent: bool) -> None:
    """Most answers of a server that fails now and then are good."""
    standings.failed("s", 0.0)
    standings.eject("s", 0.1, "" if silent else "failing")
    assert standings.succeeded("s", 0.2) == ("returned" if silent else "answers")
    assert standings.in_rotation("s") == silent


def test_who_has_brought_a_server_back_follows_others_who_put_it_out_again(standings: Standings) -> None:
    standings.follow({"s": "failing"}, asked_at=0.0, now=0.0)
    assert standings.succeeded("s", 1.0, trial=True) == "returned"
    standings.follow({"s": "failing"}, asked_at=0.9, now=1.1)
    assert standings.in_rotation("s"), "the board did not know it yet"
    standings.follow({}, asked_at=1.5, now=1.6)
    standings.failed("s", 1.7)
    standings.succeeded("s", 2.0)
    standings.follow({"s": "failing"}, asked_at=2.5, now=2.6)
    assert not standings.in_rotation("s")


@pytest.mark.parametrize("bar", ["departed", "webhook"])
def test_answers_to_what_was_under_way_count_for_less_than_departures_and_webhooks(
    standings: Standings, bar: Bar
) -> None:
    standings.failed("s", 0.0)
    standings.succeeded("s", 0.5)
    standings.follow({"s": bar}, asked_at=1.0, now=1.0)
    assert not standings.in_rotation("s"), "though it has just answered"
    for now in (1.1, 5.0, 5.1):
        assert standings.succeeded("s", now) == ""
        assert standings.begun("s", now) == ""
        standings.put_out("s", now, bar)
        assert not standings.in_rotation("s")
    standings.follow({"s": ""}, asked_at=6.0, now=6.0)
    assert standings.succeeded("s", 7.0) == "returned", "now it is only its probes that say so"


@pytest.mark.parametrize("whole", [False, True])
def test_a_trial_disproves_a_departure_and_no_webhook(standings: Standings, *, whole: bool) -> None:
    take = standings.succeeded if whole else standings.begun
    standings.follow({"s": "departed"}, asked_at=0.0, now=0.0)
    standings.begin_trial("s", 1.0)
    assert take("s", 1.5, trial=True) == "returned"
    standings.put_out("s", 1.6, "departed")
    assert standings.in_rotation("s")
    standings.follow({"s": "webhook"}, asked_at=2.0, now=2.0)
    pauses, now = [], 2.0
    for _ in range(4):
        pauses.append(standings.retry_in("s", now))
        now += pauses[-1]
        standings.begin_trial("s", now)
        assert take("s", now, trial=True) == ""
        assert not standings.in_rotation("s")
    assert pauses == [1, 2, 4, 8]
    standings.follow({}, asked_at=now + 1, now=now + 1)
    assert standings.in_rotation("s")


def test_who_may_not_be_out_is_pardoned(standings: Standings) -> None:
    for _ in range(EJECT_AFTER):
        standings.failed("s", 0.0)
    assert not standings.in_rotation("s")
    standings.pardon("s", 0.0)
    assert standings.in_rotation("s")
    assert standings.pauses.is_paused("s", "m", 0.0)
    assert standings.failed("s", 0.1) == ""


def test_the_board_is_not_pardoned(standings: Standings) -> None:
    standings.put_out("s", 0.0)
    standings.pardon("s", 0.0)
    assert not standings.in_rotation("s")


@given(st.lists(st.sampled_from(["waits", "answers", "begins", "told", "told otherwise"]), max_size=12))
@example(["told", "begins"])
@example(["waits", "answers"])
def test_an_answer_where_any_worker_waited_in_vain_is_news_once(history: list[str]) -> None:
    standings, silent, failing = new(), False, False
    for now, event in enumerate(history):
        if event == "waits":
            standings = new()  # else so many in a row would put it out
            standings.failed("s", float(now))
            standings.fell_silent("s", 0.0)
            failing = True
        elif event.startswith("told"):
            standings.follow_troubled({"s"} if event == "told" else set(), set(), float(now))
            failing = False
        elif event == "answers":
            assert standings.succeeded("s", float(now)) == ("answers" if silent or failing else "")
            failing = False
        else:
            assert standings.begun("s", float(now)) == ("answers" if silent else "")
        silent = event in ("waits", "told")
        assert standings.in_rotation("s")


def test_all_workers_together_put_out_who_is_still_silent_here() -> None:
    standings = new()
    standings.failed("s", 0.0)
    standings.fell_silent("s", 0.0)
    assert standings.is_in_trouble("s", silent=True)
    standings.eject("s", 1.0)
    assert not standings.is_in_trouble("s", silent=True), "no news"
    assert not standings.in_rotation("s")
    assert standings.retry_in("s", 1.0) == FIRST_BACKOFF
    answering = new()
    answering.follow_troubled({"s"}, set(), 0.0)
    answering.succeeded("s", 0.0)
    assert not answering.is_in_trouble("s", silent=True)


def test_all_workers_together_put_out_who_has_answered_nothing_since_it_failed() -> None:
    """The beginning of a stream is no answer yet: it may break off as all before."""
    for before in ("failed here", "failed elsewhere"):
        for after, out in (("", True), ("begins", True), ("answers", False)):
            standings = new()
            if before == "failed here":
                standings.failed("s", 0.0)
            else:
                standings.follow_troubled(set(), {"s"}, 0.0)
            if after:
                take = standings.succeeded if after == "answers" else standings.begun
                assert take("s", 0.5) == ("answers" if after == "answers" else "")
            assert standings.is_in_trouble("s", silent=False) is out


def test_the_board_may_not_know_yet_who_has_just_failed_here() -> None:
    standings = new()
    standings.failed("s", 5.0)
    standings.follow_troubled(set(), set(), 4.9)
    assert standings.succeeded("s", 5.1) == "answers", "else the count on the board would stay"
    standings.failed("s", 6.0)
    standings.follow_troubled(set(), set(), 7.0)
    assert standings.succeeded("s", 7.1) == "", "another worker has told it"


def test_since_when_a_server_is_silent_is_told_by_the_request_that_waited_first() -> None:
    standings = new()
    for since in (5.0, 3.0, 8.0):
        standings.failed("s", 10.0)
        standings.fell_silent("s", since)
    standing = standings["s"]
    assert standing and standing.silent_since == 3.0
    standings.begun("s", 11.0)
    assert standing.silent_since == 0.0
    standings.fell_silent("s", 9.0)
    assert standing.silent_since == 11.0, "it has answered since that request began"
    standings.follow_troubled(set(), set(), 20.0)
    assert standing.silent_since == 0.0, "another worker got an answer"
    standings.failed("s", 30.0)
    standings.fell_silent("s", 12.0)
    assert standing.silent_since == 20.0, "and that was later, too"


def test_that_the_board_counts_no_silences_of_who_is_out_is_no_answer() -> None:
    standings = new()
    standings.failed("s", 10.0, "refused")
    standings.fell_silent("s", 3.0)
    standings.follow_troubled(set(), set(), 20.0)
    standings.failed("s", 30.0, trial=True)
    standings.fell_silent("s", 5.0)
    standing = standings["s"]
    assert standing and standing.silent_since == 5.0


def test_a_pause_is_news_once_and_ends_by_itself() -> None:
    standings = new()
    assert standings.pause("s", "m", 0.0, 10.0)
    assert not standings.pause("s", "m", 5.0, 10.0)
    assert standings.pauses.is_paused("s", "m", 14.9)
    assert not standings.pauses.is_paused("s", "another", 5.0)
    assert not standings.pauses.is_paused("s", "m", 15.0)
    assert standings.pause("s", "", 20.0, 1.0)
    assert standings.pauses.is_paused("s", "another", 20.5)
    assert standings.in_rotation("s")
    assert standings.pause("s", "", 30.0, 1.0), "again"
    standings.pause("s", "", 40.0, 30.0)
    standings.ask_last("s", 41.0)
    assert standings.pauses.is_paused("s", "m", 69.9), "a shorter one takes nothing from a longer one"


class Workers:
    """Some workers and what they have told each other, as the board keeps it."""

    def __init__(self, count: int) -> None:
        self.each = [new() for _ in range(count)]
        self.all = NONE

    def exchange(self, now: float) -> None:
        """Each tells, then each takes."""
        for standings in self.each:
            if untold := standings.take_untold(now).get("s"):
                self.all = Tally(self.all.good + untold.good, self.all.bad + untold.bad)
        for standings in self.each:
            standings.follow_shared({"s": self.all} if self.all.bad else {}, now)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=ENOUGH, max_size=80))
def test_answers_of_all_workers_are_counted_once(answers: list[tuple[int, bool, bool]]) -> None:
    workers = Workers(4)
    workers.each[0].failed("s", 1.0)
    workers.exchange(2.0)
    good, bad = 0, 1
    for number, is_good, exchanges in answers:
        standings = workers.each[number]
        if is_good:
            standings.succeeded("s", 3.0)
            good += 1
        else:
            standings.failed("s", 3.0, company=ENOUGH_ARE_OUT)
            bad += 1
        if exchanges:
            workers.exchange(3.0)
    workers.exchange(3.0)
    assert workers.all == (good, bad)
    share = bad / (good + bad)
    assert [standings["s"] and standings["s"].window.share for standings in workers.each] == [share] * 4


def test_few_answers_of_each_worker_are_enough_of_all_to_put_a_server_out() -> None:
    workers, verdicts = Workers(8), []
    for number in range(48):
        standings = workers.each[number * 3 % 8]
        verdict = standings.failed("s", number / 4) if number % 6 == 0 else standings.succeeded("s", number / 4)
        workers.exchange(number / 4)
        verdicts.append(verdict)
        if verdict == "ejected":
            break
    assert verdicts[-1] == "ejected"
    assert len(verdicts) == 25, "with the first failure of which it is known that it is one of 20 answers or more"


def test_nobody_goes_out_without_a_failure_of_its_own(standings: Standings) -> None:
    standings.follow_shared({"s": Tally(10, 10)}, 1.0)
    assert standings.in_rotation("s")
    assert standings.succeeded("s", 2.0) == ""
    assert standings.take_untold(3.0) == {"s": (1, 0)}, "but what it answers is counted from now on"
    assert standings.failed("s", 3.0, company=ENOUGH_ARE_OUT) == "degraded", "if it may not be out"
    assert standings.failed("s", 3.0) == "ejected"


@pytest.mark.parametrize("whole", [True, False])
def test_who_comes_back_begins_anew(standings: Standings, *, whole: bool) -> None:
    standings.follow_shared({"s": Tally(30, 10)}, 1.0)
    assert standings.failed("s", 2.0) == "ejected"
    assert standings.take_untold(3.0) == {}, "it says nothing of who is back"
    standings.begin_trial("s", 4.0)
    (standings.succeeded if whole else standings.begun)("s", 5.0, trial=True)
    standings.follow_shared({"s": Tally(30, 10)}, 4.5)
    assert standings.failed("s", 5.5) == "", "the board did not know yet that it is back"
    assert standings.take_untold(6.0) == {"s": (0, 1)}


def test_who_may_not_be_out_begins_anew_too(standings: Standings) -> None:
    standings.follow_shared({"s": Tally(30, 10)}, 1.0)
    assert standings.failed("s", 2.0) == "ejected"
    standings.pardon("s", 2.1)
    standings.follow_shared({"s": Tally(30, 10)}, 1.5)
    assert standings.failed("s", 2.5) == ""


def test_without_redis_each_goes_by_its_own_and_tells_no_old_answers_later(standings: Standings) -> None:
    standings.follow_shared({"s": Tally(30, 10)}, 1.0)
    standings.follow_shared({}, 2.0)
    assert standings.failed("s", 3.0) == ""
    for _ in range(ENOUGH):
        standings.succeeded("s", 3.0)
    standings.succeeded("s", 3.0 + WINDOW)
    assert standings.take_untold(3.0 + 2 * WINDOW) == {"s": (1, 0)}


def test_a_failure_that_was_told_may_still_be_forgiven(standings: Standings) -> None:
    standings.failed("s", 1.0)
    assert standings.take_untold(2.0) == {"s": (0, 1)}
    standings.follow_shared({"s": Tally(0, 1)}, 2.0)
    standings.forgive("s")
    standings.succeeded("s", 2.5)
    assert standings.take_untold(3.0) == {"s": (1, -1)}
    standings.follow_shared({}, 3.0)
    standings.succeeded("s", 3.5)
    assert standings["s"] is None


def test_what_fails_nowhere_any_more_leaves_no_trace(standings: Standings) -> None:
    standings.follow_shared({"s": Tally(5, 1)}, 1.0)
    standings.succeeded("s", 2.0)
    assert standings["s"] is not None
    standings.follow_shared({}, 3.0)
    standings.succeeded("s", 4.0)
    assert standings["s"] is None
