"""Django's own handler, for the console and its files, behind the limits on bodies that hold everywhere."""

from collections.abc import Awaitable, Callable

from citadel.answer import error_answer
from citadel.body import Bodies, ClientLeft, Message, Receive, Scope, Send, refuse
from citadel.cookies import harmless
from citadel.errors import CitadelError
from citadel.origin import origin_of
from citadel.sections import Config

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Console:
    """An ASGI application around Django's: it gets bodies that are whole and small enough to be kept in memory."""

    def __init__(self, django: Application, config: Config, bodies: Bodies):
        self._django = django
        self._bodies = bodies
        self._public_url = config.server.public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request."""
        try:
            self._bodies.check_head(dict(scope["headers"]))
            body = await self._bodies.receive(receive)
        except ClientLeft:
            return
        except CitadelError as error:
            await refuse(error_answer(error), [], receive, send)
            return
        await self._django(self._as_browsers_say_it(scope), _replaying(body, receive), send)

    def _as_browsers_say_it(self, scope: Scope) -> Scope:
        """With the scheme of `server.public_url`, where a request is for its host: addresses that are told begin so;
        without cookies that no browser sends.
        """
        host = dict(scope["headers"]).get(b"host", b"")
        cookies = b";".join([value for name, value in scope["headers"] if name == b"cookie"])
        others = [header for header in scope["headers"] if header[0] != b"cookie"]
        headers = [*others, (b"cookie", harmless(cookies))] if cookies else others
        return {**scope, "scheme": origin_of(scope["scheme"], host, self._public_url).scheme, "headers": headers}


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives `body`, then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
