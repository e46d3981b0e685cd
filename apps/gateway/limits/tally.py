"""What this worker runs, by holder, and what Redis is still to be told of that. Pure."""

from collections import Counter
from collections.abc import Sequence

from apps.gateway.limits.admission import ADMITTED, CHOSEN, WAITS, Question, Verdict, held_on
from apps.gateway.limits.budgets import IN_PURSE, Purse
from apps.gateway.limits.quotas import NO_TERMS
from citadel.redis import Argument

ON_SERVER = "@"
"""Stands before the name of a server, in whose places requests are counted as a client's are."""


class Tally:
    """Counts what begins and ends. The next call to Redis takes along all that has ended since the last."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        """Of each holder: requests, or what they may take out of a purse."""
        self._released: Counter[str] = Counter()
        """Of each holder, how much runs no more; below 0 what runs unasked."""
        self._settled: list[tuple[Question, int]] = []
        """Requests whose reserved tokens are no longer reserved, and how many they have used."""
        self._waited: list[tuple[Argument, ...]] = []
        """Waits that are over, as the script takes them."""
        self._charged: Counter[str] = Counter()
        """What has been taken out of each purse."""

    @property
    def is_untold(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._released or self._settled or self._waited or self._charged)

    def begin(self, question: Question) -> None:
        """A request runs, or waits for its place."""
        for quota in question.concurrent:
            self.running[quota.holder] += 1
        for claim in question.claims:
            self.running[IN_PURSE + claim.purse.name] += claim.amount

    def claim(self, server: str) -> None:
        """A request has a place there."""
        self.running[ON_SERVER + server] += 1

    def note(self, asked: Sequence[Question], verdicts: Sequence[Verdict]) -> None:
        """Takes what Redis has let in, and counts for this worker from now on."""
        for question, verdict in zip(asked, verdicts, strict=True):
            if verdict[0] in (ADMITTED, WAITS):
                self.begin(question)
            if server := held_on(question.wanted, verdict[CHOSEN]):
                self.claim(server)

    def end(self, holder: str, amount: int = 1) -> None:
        """So much of it runs no more."""
        self.running[holder] -= amount
        if not self.running[holder]:
            del self.running[holder]
        if amount:
            self._released[holder] += amount

    def run_on(self, holder: str) -> None:
        """One more runs for it, about which Redis was not asked: it is told so as of what has ended."""
        self.running[holder] += 1
        self._released[holder] -= 1

    def settle(self, question: Question, used: int) -> None:
        """A request has used so many of the tokens that it had reserved."""
        self._settled.append((question, used))

    def place(self) -> None:
        """A request that waited has its place, and counts as any that was admitted."""
        self._waited.append((0, 0))

    def withdraw(self, question: Question, since: int) -> None:
        """A request that has waited `since` then (ms, by Redis's clock) came to no place, and counts no more."""
        holders = [quota.holder for quota in (question.terms or NO_TERMS).quotas if quota.requests]
        self._waited.append((since, len(holders), *holders))

    def charge(self, purse: Purse, amount: int) -> None:
        """A request has taken so much out of a purse."""
        self._charged[purse.name] += amount

    def take(self) -> list[Argument]:
        """What is untold, as the script takes it; from now on it is told."""
        arguments: list[Argument] = [len(self._released)]
        for released in self._released.items():
            arguments += released
        self._released.clear()
        settled = [
            (quota.holder, question.ticket, question.tokens, used)
            for question, used in self._settled
            for quota in (question.terms or NO_TERMS).quotas
            if quota.tokens
        ]
        self._settled.clear()
        arguments.append(len(settled))
        for one in settled:
            arguments += one
        arguments.append(len(self._waited))
        for wait in self._waited:
            arguments += wait
        self._waited.clear()
        arguments.append(len(self._charged))
        for charged in self._charged.items():
            arguments += charged
        self._charged.clear()
        return arguments

    def anew(self) -> list[Argument]:
        """All that runs, as it is told under another name, for which nothing was counted that could be released."""
        self._released.clear()
        return [part for holder in self.running.items() for part in holder]
