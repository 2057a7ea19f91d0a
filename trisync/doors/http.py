"""The web door: HTTP/1.1 on the port that browsers use, and the way from there to a WebSocket or the HTTP interface.

Every request head is read first, under a deadline, and judged here. The upgrade that nearly all clients send is read by
plain_upgrade.py, all else by h11; only a real upgrade is handed to websocket.py, and what is for the interface to
http_calls.py. The page's files are in web_files.py, the rules for hosts and origins in http_rules.py.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus

import h11
import msgspec
import trio

from trisync.core.broker import Broker
from trisync.doors.http_api import HttpSession
from trisync.doors.http_calls import HttpCalls, pass_over_body
from trisync.doors.web_files import PAGE_HEADERS
from trisync.doors.websocket import WebSocket, WebSocketDoor
from trisync.sessions.connection import Connection
from trisync.sessions.hooks import Hooks
from trisync.sessions.registry import Registry
from trisync.settings import Settings
from trisync.version import __version__
from trisync.wire.http_answers import CLOSE, Answer, common_headers, explain, render
from trisync.wire.http_routes import is_for_api
from trisync.wire.http_rules import (
    Headers,
    HttpRefusal,
    header,
    host_name,
    in_origin_form,
    is_loopback,
    refuse_foreign_host,
    refuse_host,
    refuse_origin,
    refuse_two_lengths,
    refuse_upgrade,
    refuse_version,
    wants_upgrade,
)
from trisync.wire.plain_upgrade import read_plain_upgrade
from trisync.wire.protocol import shortened

HEAD_BYTES_MAX = 16 * 1024
"""Of a request head: what common servers allow, and a bound on what h11 keeps."""

_EMPTY_LINES = re.compile(rb"(?:\r\n)++")  # possessive: else each is remembered
_READING = (b"GET", b"HEAD")
_TEXT = b"text/plain; charset=utf-8"


class HttpDoor:
    """Serves the web port. handle() is run once for each client."""

    def __init__(
        self, broker: Broker, registry: Registry, settings: Settings, hooks: Hooks, files: Mapping[str, Answer]
    ) -> None:
        self.registry = registry
        self.settings = settings
        self.now_ms = broker.now_ms
        self._broker = broker
        self._hooks = hooks
        self.websockets = WebSocketDoor(broker, registry, settings, hooks)
        self.files = files
        self.draining = False
        """Set when the server stops: requests get 503, also those for /health, and those for events a goodbye."""
        self._loopback = is_loopback(settings.host)

    async def handle(self, stream: trio.abc.HalfCloseableStream, peer: str) -> None:
        """Serve one client until it or the server ends it."""
        connection = Connection(stream, self.settings, f"web {peer}", self._broker.tokens)
        if not self.registry.admit(connection, None):
            await trio.aclose_forcefully(stream)
            return
        exchange = _Exchange(self, connection)
        try:
            await connection.serve(exchange.run, exchange.farewell)
        finally:
            try:
                await exchange.leave()
            finally:
                self.registry.dismiss(connection)  # last: a server that drains waits for the hooks

    def meet_caller(self, connection: Connection, http: h11.Connection) -> HttpCalls:
        """A client that calls the HTTP interface; its session is to be closed at the end."""
        session = HttpSession(self._broker, connection, self.settings, self._hooks)
        return HttpCalls(http, connection, self.registry, session, self.settings, self.now_ms)

    def judge(self, method: bytes, version: bytes, headers: Headers) -> HttpRefusal | None:
        """What a request deserves, if not to be served."""
        upgrade = wants_upgrade(headers)
        # HTTP/1.0 has no Host, and no browser speaks it.
        host = host_name(header(headers, b"host") or (b"localhost" if version == b"1.0" else b""))
        return (
            refuse_version(version)
            or refuse_two_lengths(headers)
            or refuse_host(host)
            or (HttpRefusal(503, "the server is stopping") if self.draining else None)
            or (refuse_foreign_host(host or "") if self._loopback else None)
            or (refuse_origin(headers, self.settings.origins) if upgrade or method not in _READING else None)
            or (refuse_upgrade(method, version, headers) if upgrade else None)
        )


class _Exchange:
    """One client's requests and answers, until it goes or becomes a WebSocket."""

    __slots__ = ("_asked", "_connection", "_door", "_head_only", "_http", "_websocket", "calls")

    def __init__(self, door: HttpDoor, connection: Connection) -> None:
        self._door = door
        self._connection = connection
        self._http: h11.Connection  # while it sends requests: a few kilobytes that an open WebSocket does not need
        self._websocket: WebSocket | None = None
        self._head_only = False
        self._asked = ""  # the request that is being answered, for the log
        self.calls: HttpCalls | None = None
        """Of the HTTP interface, once there was one."""

    async def run(self) -> None:
        """Answer requests; on an upgrade, go on as a WebSocket."""
        first = await self._first_bytes()
        upgrade = read_plain_upgrade(first)
        if upgrade is not None and self._door.judge(b"GET", b"1.1", upgrade.headers) is None:
            self._websocket = self._door.websockets.meet(self._connection, upgrade.key, upgrade.rest, upgrade.answer)
            del first, upgrade
            await self._door.websockets.converse(self._websocket)
        elif first:
            self._http = _new_reader(first)
            await self._answer_requests()

    async def _first_bytes(self) -> bytes:
        """What the client says first; nothing where it hangs up or stays silent."""
        with trio.move_on_after(self._door.settings.handshake_s):
            return bytes(await self._connection.receive())
        return b""

    async def _answer_requests(self) -> None:
        idle_s = self._door.settings.handshake_s
        while (request := await self._next_request(idle_s)) is not None:
            headers = list(request.headers)
            refusal = self._door.judge(request.method, request.http_version, headers)
            if refusal is None and wants_upgrade(headers):
                rest, _ = self._http.trailing_data
                key = header(headers, b"sec-websocket-key") or b""
                del self._http
                self._websocket = self._door.websockets.meet(self._connection, key, rest)
                del request, headers
                await self._door.websockets.converse(self._websocket)
                return
            if is_for_api(request.target) and not wants_upgrade(headers):
                if not await self._call(request, refusal):
                    return
            elif refusal is not None:
                self._refuse(refusal)
            else:
                await self._answer(request)
            if not self._next_cycle():
                return
            idle_s = self._door.settings.http_idle_s
            await trio.lowlevel.checkpoint()  # of one read, hundreds may be answered without waiting for anything

    async def _call(self, request: h11.Request, refusal: HttpRefusal | None) -> bool:
        """Hand a request to the HTTP interface; whether another one may follow."""
        if self.calls is None:
            self.calls = self._door.meet_caller(self._connection, self._http)
        return await self.calls.serve(request, refusal)

    def farewell(self) -> None:
        """The last bytes of what became a WebSocket."""
        if self._websocket is not None:
            self._websocket.farewell()

    async def leave(self) -> None:
        """Tell a program's hooks that what became a session has ended."""
        if self.calls is not None:
            self.calls.session.close()
            await self.calls.session.leave()
        if self._websocket is not None:
            await self._websocket.session.leave()

    async def _next_request(self, idle_s: float) -> h11.Request | None:
        """The next request's head; None where there will be none. What is malformed or slow is answered here."""
        self._asked, self._head_only = "", False
        if not (self._begins_request() or await self._wait_for_request(idle_s)):
            return None
        await self._connection.room()  # who has answers to take is not read from, and so could not be in time
        with trio.move_on_after(self._door.settings.handshake_s):
            try:
                return await self._read_head()
            except h11.RemoteProtocolError as error:
                self._refuse(HttpRefusal(error.error_status_hint, explain(error)))
                return None
        self._refuse(HttpRefusal(408, "the request did not come in time"))
        return None

    async def _wait_for_request(self, idle_s: float) -> bool:
        """Wait until there is something of a request; whether there is."""
        while True:
            with trio.move_on_after(idle_s):
                while chunk := bytes(await self._connection.receive()):
                    self._http.receive_data(chunk)
                    if self._begins_request():
                        return True
                return False
            if not self._connection.outbox.backlog:
                return False
            await self._connection.outbox.flush()  # who still takes an answer is not idle, however slowly (P6)

    def _begins_request(self) -> bool:
        """Whether there is something of a request, behind empty lines, which are passed over (RFC 9112, section 2.2).

        Some clients send one behind a body. Half of one is nothing of a request.
        """
        held, _ = self._http.trailing_data
        blank = _EMPTY_LINES.match(held)
        if blank:
            held = held[blank.end() :]
            self._http = _new_reader(held)
            if self.calls is not None:
                self.calls.http = self._http
        return held not in (b"", b"\r")

    async def _read_head(self) -> h11.Request | None:
        """The head that has begun; None where it is refused. Raises RemoteProtocolError."""
        held_bytes = len(self._http.trailing_data[0])
        while (event := self._http.next_event()) is h11.NEED_DATA:
            chunk = bytes(await self._connection.receive())
            held_bytes += len(chunk)
            self._http.receive_data(chunk)
        assert type(event) is h11.Request
        self._head_only = event.method == b"HEAD"
        self._asked = shortened(f" for {(event.method + b' ' + event.target).decode('latin-1')}", 200)
        # h11 measures only a head that is not whole yet; one read may bring more.
        if held_bytes - len(self._http.trailing_data[0]) > HEAD_BYTES_MAX:
            self._refuse(HttpRefusal(431, f"a request's head is at most {HEAD_BYTES_MAX} bytes"))
            return None
        return in_origin_form(event)

    def _next_cycle(self) -> bool:
        """Whether another request may follow on this connection."""
        try:
            self._http.start_next_cycle()
        except h11.LocalProtocolError:
            return False
        return True

    async def _answer(self, request: h11.Request) -> None:
        path = request.target.split(b"?", 1)[0].decode("latin-1")
        found = self._health() if path == "/health" else self._door.files.get(path)
        if found is None:
            self._refuse(HttpRefusal(404, "there is nothing here"))
            return
        if request.method not in _READING:
            self._refuse(HttpRefusal(405, "this can only be read", ((b"Allow", b"GET, HEAD"),)))
            return
        headers = [*PAGE_HEADERS, *common_headers(request.headers, self._door.settings.origins)]
        if not await pass_over_body(self._http):  # what nobody wants is not waited for
            headers.append(CLOSE)
        self._respond(found, headers)

    def _health(self) -> Answer:
        health = {"status": "ok", "server": f"trisync/{__version__}", "connections": len(self._door.registry)}
        return Answer(200, msgspec.json.encode(health))

    def _refuse(self, refusal: HttpRefusal) -> None:
        """Answer with a refusal and close behind it: what the client sent along with it is not wanted."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = f"{refusal.status} {HTTPStatus(refusal.status).phrase}: {refusal.reason}\n".encode()
        self._connection.note(f"{refusal.status} {refusal.reason}{self._asked}")
        self._respond(Answer(refusal.status, body, refusal.headers, _TEXT), [CLOSE])

    def _respond(self, answer: Answer, headers: list[tuple[bytes, bytes]]) -> None:
        now_ms = self._door.now_ms()
        self._connection.outbox.write(render(self._http, answer, headers, now_ms=now_ms, head_only=self._head_only))


def _new_reader(data: bytes) -> h11.Connection:
    """Of a client that has sent this."""
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    if data:  # nothing would be the end
        http.receive_data(data)
    return http
