"""Calls to the HTTP interface over one connection: bodies in, answers out, and streams of events.

http.py reads the heads and hands them on; what a call does is in http_api.py.
"""

from collections.abc import Callable

import h11
import trio

from trisync.doors.http_api import HttpSession
from trisync.sessions.connection import DRAINING, Connection
from trisync.sessions.registry import Registry
from trisync.settings import Settings
from trisync.storage.log import LogUnavailable
from trisync.wire.errors import WireError, too_large
from trisync.wire.event_stream import COMMENT, join_events
from trisync.wire.http_answers import (
    CLOSE,
    EVENT_STREAM,
    Answer,
    HttpError,
    common_headers,
    date,
    explain,
    preflight,
    refused,
    render,
)
from trisync.wire.http_routes import Call, Resource, allowed_methods, find_resource, is_for_events, read_call
from trisync.wire.http_rules import Headers, HttpRefusal, header

_REFUSED_CODES = {403: "forbidden", 503: "draining"}
"""What a refusal from before the interface is in the wire's words; the others are bad requests."""

_ORDINARY = {"conflict", "not_found"}
"""Refusals that belong to good work and are not logged: callers often have a connection for each call."""


class HttpCalls:
    """One client's calls. Its session is to be closed at the end, as any other."""

    __slots__ = (
        "_begun",
        "_common",
        "_connection",
        "_head_only",
        "_now_ms",
        "_registry",
        "_settings",
        "http",
        "session",
    )

    def __init__(
        self,
        http: h11.Connection,
        connection: Connection,
        registry: Registry,
        session: HttpSession,
        settings: Settings,
        now_ms: Callable[[], int],
    ) -> None:
        self.session = session
        self._registry = registry
        self.http = http
        """What reads and writes the connection; http.py replaces it between two calls."""
        self._connection = connection
        self._settings = settings
        self._now_ms = now_ms
        self._begun = False
        self._common: list[tuple[bytes, bytes]] = []
        self._head_only = False

    async def serve(self, request: h11.Request, refusal: HttpRefusal | None) -> bool:
        """Answer a request whose head was read, with a refusal if it got one; whether another one may follow."""
        headers = list(request.headers)
        self._common = common_headers(headers, self._settings.origins)
        self._head_only = request.method == b"HEAD"
        self._connection.render = self._render_bug
        self.session.calling = True
        try:
            answer = await self._answer(request, headers, refusal)
        except HttpError as error:
            answer = error.answer
        except WireError as error:
            answer = refused(error)
        except LogUnavailable as problem:
            answer = refused(WireError("unavailable", f"the log cannot be had now: {problem}"))
        closes = answer is None or answer.closes or not await pass_over_body(self.http)
        self._connection.render = None
        self.session.calling = False
        if answer is None:
            return False
        closes = closes or self.session.leaving
        self._connection.outbox.write(self._render(answer, closes=closes))
        self._take_note(answer, closes=closes)
        return not closes

    def _take_note(self, answer: Answer, *, closes: bool) -> None:
        """Log a refusal, and have the program's hooks told why the connection ends, if it does for that."""
        error, stopping = answer.error, self.session.leaving
        if error is not None and error.code not in _ORDINARY:
            told = f"{error.code}: {error.message}"
            stopping = stopping or error.code == "draining"
            if closes and not stopping:
                self._connection.end(told)
            else:
                self._connection.note(f"{answer.status} {told}")
        if stopping:
            self._connection.end(DRAINING)

    async def _answer(self, request: h11.Request, headers: Headers, refusal: HttpRefusal | None) -> Answer | None:
        """The answer to a request; None where that was a stream, which has ended."""
        if refusal is not None:
            return self._refuse(request, refusal)
        if request.method == b"OPTIONS":
            resource, _, _ = find_resource(request.target)
            return preflight(allowed_methods(resource))
        call = read_call(request.method, request.target, headers)
        if not self._begun:
            self._registry.speak_for(self._connection, self.session)
            await self.session.begin()
            self._begun = True
        body = await self._read_body(headers) if call.has_body else b""
        if call.resource is Resource.EVENTS and not self._head_only:
            await self._stream(call, headers)
            return None
        answer = await self.session.answer(call, headers, body)
        if call.resource is Resource.EVENTS:  # of a HEAD, which has the head of GET: no length, and closes
            self._connection.outbox.write(self._stream_head())
            return None
        return answer

    def _refuse(self, request: h11.Request, refusal: HttpRefusal) -> Answer:
        error = WireError(_REFUSED_CODES.get(refusal.status, "bad_request"), refusal.reason, closes=True)
        if error.code == "draining" and request.method == b"GET" and is_for_events(request.target):
            # An EventSource gives up for good at any other status: so it hears when to come back.
            goodbye = join_events([self.session.goodbye_message()])
            return Answer(200, goodbye, content_type=EVENT_STREAM, error=error)
        return refused(error, refusal.status, refusal.headers)

    async def _stream(self, call: Call, headers: Headers) -> None:
        """Send events, until the client hangs up; what it sends meanwhile is not looked at."""
        connection, session = self._connection, self.session
        await session.follow(call, headers, self._stream_head())
        connection.render = None
        session.calling = False
        if session.leaving:
            session.goodbye()
        while True:
            with trio.move_on_after(self._settings.heartbeat_s):
                if not await connection.receive():
                    await session.level()
                    return
                continue
            if not connection.outbox.backlog:
                connection.outbox.write(COMMENT)

    # Bodies

    async def _read_body(self, headers: Headers) -> bytes:
        """The whole body. Raises HttpError and WireError when it is too large, too slow, malformed or cut off."""
        limit = self._settings.message_bytes_max
        if int(header(headers, b"content-length") or 0) > limit:
            raise too_large(limit)
        if self.http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, reason=b"Continue", headers=[])
            self._connection.outbox.write(self.http.send(go_on) or b"")
        with trio.CancelScope() as self.session.body:
            try:
                return await self._gather_body(limit)
            except h11.RemoteProtocolError as error:
                problem = f"the body is cut off or malformed: {explain(error)}"
                raise WireError("bad_request", problem, closes=True) from None
            finally:
                self.session.body = None
                self._connection.expect(None, progress=False)
        raise WireError("draining", "the server is stopping; nothing was stored", closes=True)

    async def _gather_body(self, limit: int) -> bytes:
        body = bytearray()
        while True:
            event = self.http.next_event()
            if type(event) is h11.Data:
                body += event.data
                if len(body) > limit:
                    raise too_large(limit)
                await trio.lowlevel.checkpoint()  # one read may bring ten thousand chunks, of 10 µs each
            elif event is h11.NEED_DATA:
                self._connection.expect(len(body), progress=False)
                self.http.receive_data(await self._next_of_body())
            else:
                return bytes(body)

    async def _next_of_body(self) -> bytes:
        try:
            return bytes(await self._connection.receive())
        except WireError as late:
            raise HttpError(refused(late, 408)) from None

    # Answers

    def _render(self, answer: Answer, *, closes: bool) -> bytes:
        headers = [*self._common, CLOSE] if closes else self._common
        return render(self.http, answer, headers, now_ms=self._now_ms(), head_only=self._head_only)

    def _render_bug(self, payload: bytes) -> bytes:
        """The response to a call that has met a fault of the server."""
        return self._render(Answer(500, payload), closes=True)

    def _stream_head(self) -> bytes:
        """The head of a response that ends with the connection: what follows is shared with other clients."""
        headers = [*self._common, (b"Content-Type", EVENT_STREAM), CLOSE]
        headers.append((b"X-Accel-Buffering", b"no"))  # nginx would gather events before it passes them on
        lines = [b"HTTP/1.1 200 OK", date(self._now_ms()), *(b"%b: %b" % pair for pair in headers), b"", b""]
        return b"\r\n".join(lines)


async def pass_over_body(http: h11.Connection) -> bool:
    """Read what is here of a body that is not wanted; whether the request has come to its end by that."""
    try:
        while http.their_state is h11.SEND_BODY:
            event = http.next_event()
            if event is h11.NEED_DATA:
                return False
            if type(event) is h11.Data:
                await trio.lowlevel.checkpoint()  # as for one that is wanted
    except h11.RemoteProtocolError:
        return False
    return True
