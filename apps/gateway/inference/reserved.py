"""What is reserved for a request until it is settled: tokens of this minute, and claims of budgets. Pure."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from apps.gateway.limits.admission import Question
from apps.gateway.limits.budgets import Claim, Purse


class Reserved(NamedTuple):
    """The questions by which it was let in: the request's own, and those of a call which it has taken over."""

    questions: tuple[Question, ...] = ()

    def also(self, *questions: Question) -> "Reserved":
        """With what was reserved by others too."""
        return Reserved((*self.questions, *questions))

    def claims(self) -> Iterator[Claim]:
        """What it may take out of purses, of each perhaps several times."""
        for question in self.questions:
            yield from question.claims

    def of(self, purse: Purse) -> int:
        """What it may take out of that one at most."""
        return sum(claim.amount for claim in self.claims() if claim.purse.name == purse.name)

    def grown(self, question: Question) -> "Reserved":
        """With more claims, as a request has them again and again while it runs: all of these are one question."""
        last = self.questions[-1] if self.questions else question
        if last is question or last.terms:
            return self.also(question)
        amounts = Counter({claim.purse: claim.amount for claim in last.claims})
        amounts.update({claim.purse: claim.amount for claim in question.claims})
        return Reserved((*self.questions[:-1], _claiming([Claim(*one) for one in amounts.items()])))

    def parted(self, used: Sequence[Claim], is_shared: Callable[[Purse], bool]) -> tuple["Reserved", "Reserved"]:
        """What stays, and what goes on with a call that is the request's no more.

        What it has `used` of its claims stays, until it is charged, and so do all of purses that are not shared with
        who goes on.
        """
        left = Counter({claim.purse.name: claim.amount for claim in used})
        kept, given = list[Claim](), list[Question]()
        for question in self.questions:
            rest = []
            for claim in question.claims:
                if not is_shared(claim.purse):
                    kept.append(claim)
                    continue
                stays = min(claim.amount, left[claim.purse.name])
                left[claim.purse.name] -= stays
                kept.append(claim._replace(amount=stays))
                rest.append(claim._replace(amount=claim.amount - stays))  # be it 0: something was claimed of it
            given.append(question._replace(claims=rest))
        return Reserved((_claiming(kept),) if kept else ()), Reserved(tuple(given))


NOTHING = Reserved()


def _claiming(claims: Sequence[Claim]) -> Question:
    return Question(None, None, "", claims=claims)
