"""What the traffic of this worker says of each server: who is out, and when it may be tried again.

A refused connection ejects at once; other failures do after `eject_after` in a row, or when they are more than a tenth
of enough answers, unless too many servers of its models are out already: that is for the caller to say. The only server
of a model stays in as long as it only tells of errors, which may be the requests' doing, and any succeeds. Where
requests wait in vain is counted over all workers, by the board, and so are good and bad answers where any are bad. What
the board says is followed. Pure: knows no clock but the one handed in.
"""

from collections.abc import Callable, Mapping, Set

from apps.orchestration.health.conditions import Bar
from apps.orchestration.health.evidence import NO_MATTER, Company, Evidence
from apps.orchestration.health.pauses import Pauses
from apps.orchestration.health.standing import PROVEN_FOR, Standing, Verdict
from apps.orchestration.health.window import NONE, Tally, Window

LAST_FOR = 2.0
"""Seconds for which a server is asked last that fails and may not be out."""


class Standings:
    """All servers' standings. Only servers in trouble have an entry, so the healthy path is one look-up."""

    def __init__(self, *, eject_after: int, max_backoff: float, trial_limit: float):
        self._eject_after = eject_after
        self._max_backoff = max_backoff
        self._trial_limit = trial_limit
        self._troubled: dict[str, Standing] = {}
        self.pauses = Pauses()
        """Who is in the rotation and asked last."""
        self._answered: dict[str, float] = {}
        """When each server last answered, or began to, as far as this worker knows."""
        self._returned: dict[str, float] = {}
        """When each server came back, as far as this worker knows."""
        self.version = 0
        """Another one whenever somebody goes out or comes back, or is asked last."""
        self.moves = 0
        """How often anybody has gone out or come back."""
        self.on_move: Callable[[], object] = lambda: None
        """Told of that, once it is so."""

    def __getitem__(self, server_id: str) -> Standing | None:
        return self._troubled.get(server_id)

    def in_rotation(self, server_id: str) -> bool:
        """Whether ordinary traffic may go there."""
        standing = self._troubled.get(server_id)
        return standing is None or standing.trials.retry_at is None

    def pause(self, server_id: str, model: str, now: float, seconds: float, *, endpoint: str = "") -> bool:
        """Has a server asked last, for a model or (`""`) any, by an endpoint or any; whether that is news."""
        news = self.pauses.begin(server_id, model, now, seconds, endpoint=endpoint)
        self.version += news
        return news

    def ask_last(self, server_id: str, now: float) -> None:
        """Has a server asked last for a while that fails and may not be out."""
        self.pause(server_id, "", now, LAST_FOR)

    def trial_due(self, server_id: str, now: float, *, lonely: bool = False) -> bool:
        """Whether an ejected server may get its one trial now."""
        standing = self._troubled.get(server_id)
        return standing is None or standing.trials.is_due(now, self._trial_limit, lonely=lonely)

    def retry_in(self, server_id: str, now: float, *, lonely: bool = False) -> float:
        """Seconds until an ejected server may be tried; `lonely` where its model has no other."""
        standing = self._troubled.get(server_id)
        return standing.trials.wait(now, lonely=lonely) if standing else 0.0

    def begin_trial(self, server_id: str, now: float) -> None:
        """Marks that a request is on its way to an ejected server, so that no second one follows."""
        if standing := self._troubled.get(server_id):
            standing.trials.begin(now)

    def abandon_trial(self, server_id: str) -> None:
        """The trial's client left before there was an answer: the next request may try."""
        if standing := self._troubled.get(server_id):
            standing.trials.trying_since = None

    def postpone_trial(self, server_id: str, until: float) -> None:
        """Another worker tries it, so the next trial is not before `until`."""
        if standing := self._troubled.get(server_id):
            standing.trials.postpone(until)

    def begun(self, server_id: str, now: float, *, trial: bool = False) -> Verdict:
        """Takes the good beginning of a stream, which may bring the server back. Earlier failures still count until a
        whole answer: a server that breaks off every stream goes out all the same.
        """
        self._answered[server_id] = now
        standing = self._troubled.get(server_id)
        if standing is None:
            return ""
        verdict = standing.begun(now, trial=trial)
        self._trial_over(standing, now, trial=trial)
        if verdict == "returned":
            self._returned[server_id] = now
            self._move()
        return verdict

    def succeeded(self, server_id: str, now: float, *, trial: bool = False) -> Verdict:
        """Takes a good answer, of the one `trial` of a server that is out or of any other request."""
        self._answered[server_id] = now
        standing = self._troubled.get(server_id)
        if standing is None:
            return ""
        verdict = standing.succeeded(now, trial=trial)
        self._trial_over(standing, now, trial=trial)
        if standing.window.is_clean and standing.on_board is None:
            del self._troubled[server_id]
        if verdict == "returned":
            self._returned[server_id] = now
            self._move()
        return verdict

    def failed(
        self,
        server_id: str,
        now: float,
        evidence: Evidence = "failed",
        company: Company = NO_MATTER,
        *,
        trial: bool = False,
    ) -> Verdict:
        """Takes a failure, of the one `trial` of an ejected server or of any other request.

        A server that would go out and may not is asked last for a while.
        """
        standing = self._troubled.setdefault(server_id, Standing(Window(now)))
        standing.failed(now)
        self._trial_over(standing, now, trial=trial)
        if standing.trials.retry_at is not None:
            return ""  # any other request was under way when the server went out, and says nothing new
        if standing.is_to_go(now, evidence, company, self._eject_after):
            self.eject(server_id, now, "" if standing.silent else "failing")
            return "ejected"
        if not company.may_eject and standing.is_bad(self._eject_after, alone=company.alone):
            self.ask_last(server_id, now)
        return standing.degrade(now)

    def is_silent(self, server_id: str) -> bool:
        """Whether somebody has waited in vain there since its last good answer, in any worker."""
        standing = self._troubled.get(server_id)
        return standing is not None and standing.silent

    def fell_silent(self, server_id: str, since: float) -> None:
        """A request has waited there in vain `since` then, or since a good answer that came later: the next one is news
        for all workers.
        """
        if standing := self._troubled.get(server_id):
            since = max(since, self._answered.get(server_id, since))
            standing.silent = True
            standing.silent_since = min(standing.silent_since or since, since)

    def follow_troubled(self, silent: Set[str], failing: Set[str], just_now: float) -> None:
        """Takes from the board where requests of any worker wait in vain, or fail. Of those that have failed here since
        `just_now` it may not know yet.
        """
        for server_id in (silent | failing) - self._troubled.keys():
            self._troubled[server_id] = Standing(Window(0.0))
        for server_id, standing in self._troubled.items():
            if standing.failed_at < just_now:
                is_in = standing.trials.retry_at is None and standing.on_board is None
                if is_in and standing.silent and server_id not in silent:  # another worker has got an answer
                    self._answered[server_id] = max(just_now, self._answered.get(server_id, 0.0))
                standing.silent, standing.failing = server_id in silent, server_id in failing
                standing.silent_since = standing.silent_since if standing.silent else 0.0

    def take_untold(self, now: float) -> dict[str, Tally]:
        """Good and bad answers since this was last asked, of the servers that have had bad ones. Those of a server that
        is out say nothing of how it is when it is back.
        """
        taken = {name: (standing, standing.window.take_untold(now)) for name, standing in self._troubled.items()}
        return {
            name: untold
            for name, (standing, untold) in taken.items()
            if untold != NONE and standing.trials.retry_at is None
        }

    def follow_shared(self, shared: Mapping[str, Tally], just_now: float) -> None:
        """Takes what the answers of all workers come to, of those that have bad ones: theirs are counted here too from
        now on. Of those that are back since `just_now` they may be from before.
        """
        for server_id in shared.keys() - self._troubled.keys():
            self._troubled[server_id] = Standing(Window(self._returned.get(server_id, 0.0)))
        for server_id, standing in self._troubled.items():
            if standing.window.opened < just_now:
                standing.window.shared = shared.get(server_id, NONE)

    def is_in_trouble(self, server_id: str, *, silent: bool) -> bool:
        """Whether a server of the rotation is `silent`, else fails, and has given no good answer since."""
        standing = self._troubled.get(server_id)
        if standing is None or standing.trials.retry_at is not None:
            return False
        return standing.silent if silent else standing.failing

    def eject(self, server_id: str, now: float, bar: Bar = "failing") -> None:
        """Puts a server out of which traffic has seen enough; without a `bar` any good answer takes it back."""
        if standing := self._troubled.get(server_id):
            standing.barred(bar)
            standing.trials.put_off(now, self._max_backoff)
            standing.on_board = None
            self._move()

    def put_out(self, server_id: str, now: float, bar: Bar = "") -> bool:
        """The board says that a server is out, with a `bar` whatever it answers; whether that is news."""
        standing = self._troubled.setdefault(server_id, Standing(Window(now)))
        if standing.on_board is None:
            standing.on_board = now
        standing.barred(bar)
        if standing.trials.retry_at is None and now - standing.proven_at > PROVEN_FOR:
            standing.trials.go_out(now)
            self._move()
            return True
        return False

    def follow(self, out: Mapping[str, Bar], asked_at: float, now: float) -> list[str]:
        """Takes what the board says: who is out, and with which bar. What it did not know yet when it was `asked_at`
        stays as it is.

        Gives those that are news.
        """
        news = [server_id for server_id, bar in out.items() if self.put_out(server_id, now, bar)]
        for server_id, standing in list(self._troubled.items()):
            if server_id not in out and standing.on_board is not None and standing.on_board < asked_at:
                del self._troubled[server_id]
                self._move()
        return news

    def pardon(self, server_id: str, now: float) -> None:
        """It may not be out: too many others are. It is asked last for a while."""
        standing = self._troubled.get(server_id)
        if standing and standing.on_board is None:
            self.ask_last(server_id, now)
            standing.pardon(now)
            self._move()

    def forgive(self, server_id: str) -> None:
        """The last failure was the request's own doing."""
        if standing := self._troubled.get(server_id):
            standing.forgive()

    def forget_all_but(self, server_ids: frozenset[str]) -> None:
        """Drops servers that are no longer in the fleet."""
        self._troubled = {name: standing for name, standing in self._troubled.items() if name in server_ids}
        self._answered = {name: at for name, at in self._answered.items() if name in server_ids}
        self._returned = {name: at for name, at in self._returned.items() if name in server_ids}
        self.pauses.forget_all_but(server_ids)
        self._move()

    def _trial_over(self, standing: Standing, now: float, *, trial: bool) -> None:
        """Where that was a trial, and the server stays out, the next one comes later."""
        if trial:
            standing.trials.trying_since = None
            if standing.trials.retry_at is not None:
                standing.trials.put_off(now, self._max_backoff)

    def _move(self) -> None:
        self.version += 1
        self.moves += 1
        self.on_move()
