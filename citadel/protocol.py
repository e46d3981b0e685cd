"""HTTP as it comes from clients: as many connections as may be, heads bounded in size and time, what is no HTTP
refused, offers to upgrade passed over, who doesn't take his answer cut off, and the running request told at once when
its client has left.
"""

import asyncio
import re
import select
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from citadel import security_log
from citadel.answer import error_answer, length_of
from citadel.body import LINGER
from citadel.connection import Connection
from citadel.context import choose_request_id
from citadel.errors import BadRequest, CitadelError, Crowded, HeadersTooLarge, TooSlow, Unauthenticated
from citadel.security_log import Event
from citadel.taking import Taking

SOCKETS = b"/ws/"
"""Where WebSockets are."""
LAST_CALL = 6
"""Seconds for which a worker that is to end keeps an idle connection: httpx, and so OpenAI's library, uses none again
after 5.
"""
LARGEST_HEAD = 160 * 1024
"""Bytes of a request's line and headers, and of what else comes without being a body's. There is room for a credential
of 100 KB, in base64 too: who sends one is told that it is none, as of any other.
"""
LONGEST_ADDRESS = 2**16 - 1
"""Bytes of what a request asks for: the parser of addresses counts no further."""
CREDENTIALS = rb"authorization|x-api-key|cookie|signature(?:-input)?|(?:x-citadel|webhook)-[a-z]+"
"""Headers that carry one."""
PROBES = re.compile(rb"(GET|HEAD) /health(/(live|ready)?)? HTTP/1\.[01]\r\n.*\r\n\r\n", re.DOTALL)
"""What is answered even on a connection too many, if it comes whole: else a busy worker is restarted, or nobody asks it
any more.
"""
FIRST_WORD = 1
"""Seconds for the first bytes on a connection too many: an answer before the request is no answer to many clients."""
UNREAD = 1
"""Seconds after which is looked again at a connection on which something has come that is not read yet."""


def no_credential(certificate: str | None = None) -> re.Pattern[bytes]:
    """Finds a credential with a NUL in it, or what else no header may hold (RFC 9110, 5.5); `certificate` is the header
    by which proxies report one, if there is any.
    """
    names = CREDENTIALS + (b"|" + re.escape(certificate.encode()) if certificate else b"")
    return re.compile(rb"\n(?:%b)[ \t]*:[^\r\n]*[\0-\x08\x0b\x0c\x0e-\x1f\x7f]" % names, re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, telling the running request what happens to its connection."""

    head_within = 10.0
    """Seconds for a request's line and headers, from their first byte to the last."""
    taken_within = 30.0
    """Seconds in each of which a client takes its answer, or a good piece of what is left of it."""
    last_call = LAST_CALL
    """Seconds for which an idle connection is kept when the worker is to end."""
    most = 1000
    """Connections at once, WebSockets included."""
    is_none = no_credential()
    """What tells in a head that a credential is none."""
    refused = 0
    """How many were too many since somebody has last asked."""
    running: Connection | None = None
    is_ending = False
    """Whether what is answered from now on is the connection's last."""
    _is_deaf = False
    """Whether nothing that comes is read any more."""
    _is_too_many = False
    _loose = 0
    """Bytes that came since a head was whole or a piece of a body was there: the parser keeps what isn't."""
    _overdue: asyncio.TimerHandle | None = None
    """When a head that has begun must be whole."""
    _begun: bytes | bytearray = b""
    """What has come of that head, for who is told what is wrong with it; no more than is loose."""
    _taking: Taking
    """Whether its answers are being taken."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client has come, which may be as long idle now as it may be later."""
        super().connection_made(transport)
        self._taking = Taking(transport, self.loop, self.taken_within)
        if len(self.connections) > self.most:
            self.connections.discard(self)  # it takes nobody's place until it is closed
            self._is_too_many = True
            self._overdue = self.loop.call_later(FIRST_WORD, self._turn_away)
        else:
            self._expect(self.timeout_keep_alive)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._is_too_many:
            self._hear_probe(data)
        if self._is_deaf:
            return
        idle, lacked = self.timeout_keep_alive_task, self.cycle is not None and self.cycle.more_body
        self._unset_keepalive_if_required()
        self._loose += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._consider(offer, data)
            if self._loose:
                self._check_loose(data)
            if idle is not None:
                self._stay_idle(idle, lacked=lacked)
        except HeadersTooLarge as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._refuse(_meaning(error, self._begun + data, self.is_none))

    def _hear_probe(self, data: bytes) -> None:
        """Reads a connection too many if it is a probe's, which is answered, and then closed."""
        self._is_too_many = False
        if PROBES.fullmatch(data):
            if self._overdue is not None:
                self._overdue.cancel()
            self._overdue, self.is_ending = None, True
        else:
            self._turn_away()

    def _turn_away(self) -> None:
        """Nothing is read of a connection too many, and its client told to come again."""
        if self.transport.is_closing() or self._is_deaf:
            return
        self._is_too_many, self._is_deaf = False, True
        Protocol.refused += 1
        self._tell(Crowded("This worker has as many connections as it may have at once.", retry_after=1))

    def on_headers_complete(self) -> None:
        """A head is whole."""
        if self._loose > LONGEST_ADDRESS:
            self._check_head()
        self._loose = 0
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue, self._begun = None, b""
        super().on_headers_complete()
        self.headers = self.headers.copy()  # trailers come in here too, and are no headers (RFC 9110, 6.5.1)

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._loose = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole, be it answered already."""
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete and not self.parser.should_upgrade():
            self.cycle.more_body = False

    def _check_head(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > LARGEST_HEAD:
            raise HeadersTooLarge(LARGEST_HEAD)
        if len(self.url) > LONGEST_ADDRESS:
            raise HeadersTooLarge(LONGEST_ADDRESS)

    @property
    def _has_begun(self) -> bool:
        """Whether a part of a head is there."""
        return self.scope is not None and "method" not in self.scope

    def _stay_idle(self, idle: asyncio.TimerHandle, *, lacked: bool) -> None:
        """With empty lines between requests, or more of the body of one that is answered, a connection is as idle as it
        was. When that body is whole, of which it `lacked` some, it may wait for another request.
        """
        if self._has_begun or not (self.cycle is None or self.cycle.response_complete):
            return
        is_whole = lacked and not self.cycle.more_body
        self._expect(self.timeout_keep_alive if is_whole else idle.when() - self.loop.time())

    def _check_loose(self, data: bytes) -> None:
        """Sets a head that has begun its time, keeps what has come of it, and bounds it: HeadersTooLarge unless all
        that came was read, as empty lines between requests are.
        """
        has_begun = self._has_begun
        if has_begun:
            if self._overdue is None:
                self._overdue, self._begun = self.loop.call_later(self.head_within, self._give_up), bytearray()
            self._begun += data
        if self._loose <= LARGEST_HEAD:
            return
        if has_begun or (self.scope is not None and self.cycle.more_body):
            raise HeadersTooLarge(LARGEST_HEAD)
        self._loose = 0

    def _give_up(self) -> None:
        """Nobody waits for a head any longer, unless what comes before it is still being answered."""
        self._overdue = None
        if self.transport.is_closing() or self._is_deaf:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(TooSlow(f"The request's headers did not arrive within {self.head_within:g} s."))
        else:
            self._overdue = self.loop.call_later(self.head_within, self._give_up)

    def _should_upgrade(self) -> bool:
        """Whether an offer to upgrade is for `_consider`: each is."""
        return True

    def _consider(self, offer: httptools.HttpParserUpgrade, data: bytes) -> None:
        """Takes up the offer of a WebSocket, and reads on as if any other had not been made (RFC 9110, 7.8).

        The parser holds all that follows for another protocol: a new one reads the request again without the offer.
        """
        rest = memoryview(data)
        while not self._opens_socket():
            if self.scope["method"] == "CONNECT":
                raise httptools.HttpParserError("this is no proxy")
            rest, head = rest[offer.args[0] :], self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            self.parser.feed_data(head)
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as another:
                offer = another
        self.handle_websocket_upgrade()

    def _opens_socket(self) -> bool:
        """Only where there are WebSockets: elsewhere a request stays one, whatever it would rather be. With a body it
        can't be another thing (RFC 9112, 7.8 would have it read first), nor before those ahead of it are answered.
        """
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        is_first = self.cycle is None or self.cycle.response_complete
        is_asked = (
            self.url.startswith(SOCKETS) and self.scope["method"] == "GET" and self._get_upgrade() == b"websocket"
        )
        return is_asked and is_first and not has_body

    def _head_without_offer(self) -> bytes:
        method, version = self.scope["method"].encode(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += (b"%b: %b" % header for header in self.headers if header[0] != b"upgrade")
        return b"\r\n".join((*lines, b"", b""))

    def _refuse(self, error: CitadelError) -> None:
        """Nothing more is read. The client is told why, or, while it is being answered, gets that and no more."""
        address = self.client[0] if self.client else ""
        event = Event.CREDENTIAL_REFUSED if isinstance(error, Unauthenticated) else Event.REQUEST_REFUSED
        security_log.tell(event, code=error.code, reason=error.message, address=address)
        self._is_deaf = True
        self.flow.resume_reading()  # what isn't read doesn't tell that the client leaves
        cycle, running = self.cycle, self.running
        if running is None or cycle.response_complete:
            self._tell(error)
        elif cycle.more_body and self.pipeline:  # it would wait in vain for the rest of its body
            self.pipeline.popleft()
            if self.pipeline:
                self.pipeline[0][0].keep_alive = False
            else:
                running.close_after()
        elif cycle.more_body and not cycle.response_started:
            self._tell(error)
            running.status = error.status_code
            cycle.disconnected = True
            cycle.message_event.set()
            running.lost()
        else:
            cycle.keep_alive = False
            self.on_message_complete()

    def _tell(self, error: CitadelError) -> None:
        """The connection's last answer; what its client still sends is taken, else that might not be read."""
        identity = choose_request_id(dict(self.headers or ()).get(b"x-request-id"))
        answer = error_answer(error, [(b"x-request-id", identity.encode()), (b"connection", b"close")])
        headers = (*self.server_state.default_headers, *answer.raw_headers, length_of(answer.content))
        lines = (b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"".join((STATUS_LINE[error.status_code], *lines, b"\r\n", answer.content)))
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.abort)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """A request begins to be answered: at once, or when those before it on this connection have been."""
        scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]  # ASGI lets servers add what they have
        scope["citadel.connection"] = self.running = Connection(cycle, self._taking)
        if self.is_ending and not self.pipeline:
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """The worker is to end. Who was promised that the connection stays may send one more request on it."""
        if self.is_ending and self.timeout_keep_alive == self.last_call:
            return
        self.is_ending = True
        self.timeout_keep_alive = self.last_call
        cycle = self.cycle
        if cycle is not None and not cycle.response_started and not self.pipeline:
            cycle.keep_alive = False
        elif self.timeout_keep_alive_task or self.scope is None:  # nothing of a request has come
            self._expect(self.last_call)

    def timeout_keep_alive_handler(self) -> None:
        """The connection was idle for long enough; it is closed unless a request has come that is not read yet."""
        if not self.transport.is_closing() and self._is_readable():
            self._expect(UNREAD)
        else:
            super().timeout_keep_alive_handler()

    def _expect(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _is_readable(self) -> bool:
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def on_response_complete(self) -> None:
        """An answer is whole."""
        self._release()
        self._taking.watch()
        super().on_response_complete()
        if self.timeout_keep_alive_task and self.cycle.more_body:  # for which nobody waits
            self._expect(min(self.timeout_keep_alive, self.head_within))

    def pause_writing(self) -> None:
        """More of a stream waits for the client than is kept for it."""
        self._taking.watch()
        super().pause_writing()

    def resume_writing(self) -> None:
        """There is room again."""
        self._taking.resumed()
        super().resume_writing()

    def handle_websocket_upgrade(self) -> None:
        """The connection is another protocol's from now on."""
        self._taking.stop()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        self._taking.stop()
        if self._overdue is not None:
            self._overdue.cancel()
        if self.running is not None:
            self.running.lost()
        self._release()

    def _release(self) -> None:
        if self.running is not None:
            self.running.release()
            self.running = None


def _meaning(error: httptools.HttpParserError, data: bytes | bytearray, is_none: re.Pattern[bytes]) -> CitadelError:
    """What the client is told of an error that the parser found in these bytes, or that came up while it parsed."""
    cause = error.__context__
    if isinstance(cause, CitadelError):
        return cause
    if "header value" in str(error) and is_none.search(data):
        return Unauthenticated("The credential is not valid: there is a control character in it.")
    reason = "the address is not valid" if isinstance(error, httptools.HttpParserCallbackError) else str(error)
    return BadRequest(f"The request is not valid HTTP/1.1: {reason}.", code="invalid_http")
