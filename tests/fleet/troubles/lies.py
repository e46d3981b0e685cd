"""Status 200, and yet no answer."""

from __future__ import annotations

from typing import Any, Literal

from ..answer import Answer
from ..backend.errors import Problem, error_body
from ..backend.routes import shape_of
from ..request import Request
from .trouble import Trouble, trouble

PAGE = "<!doctype html><html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"


@trouble("ok_error")
class OkError(Trouble, frozen=True):
    """200 with an error body: ``form=error`` is ``{"error":{…}}``, ``form=object`` is ``{"object":"error",…}``."""

    form: Literal["error", "object"] = "error"
    problem: Problem = "crash"
    status: int = 500  # what the body says, where the shape has a place for it

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Say the error with 200."""
        shape = "vllm_old" if self.form == "object" else shape_of(backend, request.path)
        answer.replace_by(Answer.of_json(error_body(shape, self.status, self.problem)))


@trouble("html")
class Html(Trouble, frozen=True):
    """An HTML page, as a proxy in between would answer; 200 unless said."""

    status: int = 200

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Say the page instead."""
        answer.replace_by(Answer.of_text(PAGE, self.status, "text/html; charset=utf-8"))


@trouble("empty")
class Empty(Trouble, frozen=True):
    """No body at all; 200 and the content type that was to be expected."""

    status: int = 200

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Say nothing."""
        answer.replace_by(Answer(self.status, dict(answer.headers)))


@trouble("not_json")
class NotJson(Trouble, frozen=True):
    """A plain body that begins as JSON and is none: cut in half, its length told rightly."""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Keep the first half."""
        if answer.events is None:
            answer.body = answer.body[: len(answer.body) // 2]


@trouble("not_utf8")
class NotUtf8(Trouble, frozen=True):
    """A plain body in which the first text of the field ``of`` holds bytes that are no UTF-8."""

    of: str = "content"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put the bytes in."""
        answer.body = answer.body.replace(b'"%b":"' % self.of.encode(), b'"%b":"\xff\xfe' % self.of.encode(), 1)


@trouble("json_is")
class JsonIs(Trouble, frozen=True):
    """A plain body of valid JSON that is not the object expected: ``null``, ``[]``, ``{}``, ``"text"``, ``17``."""

    value: str = "null"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Say the value instead."""
        answer.replace_by(Answer(200, {"content-type": "application/json"}, self.value.encode()))
