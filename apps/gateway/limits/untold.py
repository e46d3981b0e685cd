"""What Redis is still to be told of requests that have ended. Pure."""

from collections import Counter

from apps.gateway.limits.admission import Question
from apps.gateway.limits.quotas import NO_TERMS
from citadel.redis import Argument


class Untold:
    """Gathers it; the next call to Redis takes all of it along."""

    def __init__(self) -> None:
        self.released: Counter[str] = Counter()
        """Of each holder, how much runs no more."""
        self.settled: list[tuple[Question, int]] = []
        """Requests whose reserved tokens are no longer reserved, and how many they have used."""
        self.charged: Counter[str] = Counter()
        """What has been taken out of each purse."""

    def __bool__(self) -> bool:
        return bool(self.released or self.settled or self.charged)

    def take(self) -> list[Argument]:
        """All of it, as the script takes it; from now on it is told."""
        arguments: list[Argument] = [len(self.released)]
        for released in self.released.items():
            arguments += released
        self.released.clear()
        settled = [
            (quota.holder, question.ticket, question.tokens, used)
            for question, used in self.settled
            for quota in (question.terms or NO_TERMS).quotas
            if quota.tokens
        ]
        self.settled.clear()
        arguments.append(len(settled))
        for one in settled:
            arguments += one
        arguments.append(len(self.charged))
        for charged in self.charged.items():
            arguments += charged
        self.charged.clear()
        return arguments
