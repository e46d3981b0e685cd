"""Honest errors: a status that says so, and a body as one of the servers writes it."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from ..answer import Answer
from ..backend.errors import PROBLEM_OF_STATUS, STATUS, Problem, Shape, error_answer
from ..backend.routes import shape_of
from ..request import Request
from .trouble import Trouble, trouble


@trouble("error")
class Error(Trouble, frozen=True):
    """An error answer. Say the ``status``, the ``problem``, or both; ``shape`` is that of the server unless said.

    ``retry_after`` is the header's value: seconds or a date. ``body`` is the body itself, whatever the others say.
    """

    status: Annotated[int, Meta(ge=0, le=599)] = 0
    problem: Problem | None = None
    shape: Shape | None = None
    retry_after: str | None = None
    body: str | None = None

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Say the error instead."""
        problem = self.problem or PROBLEM_OF_STATUS.get(self.status or 500, "crash")
        shape = self.shape or shape_of(backend, request.path)
        status = self.status or STATUS[problem]
        answer.replace_by(error_answer(shape, problem, status, retry_after=self.retry_after))
        if self.body is not None:
            answer.body = self.body.encode()
