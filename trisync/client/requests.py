"""Requests that are not publishes: each is answered once, on whichever connection that may be. Sans-IO."""

from collections.abc import Callable
from typing import Any

from trisync.client.errors import ClientError, NotConnected, ProtocolError
from trisync.client.wire import Ok, Pong, encode_request


class Request:
    """A request that is answered by `ok` or `error`; asked again on the next connection, unless `once`."""

    __slots__ = ("error", "fields", "id", "on_done", "once", "op", "reply")

    def __init__(
        self, id: str, op: str, fields: dict[str, Any], on_done: Callable[["Request"], None], *, once: bool
    ) -> None:
        self.id = id
        self.op = op
        self.fields = fields
        self.on_done = on_done
        self.once = once
        self.reply: Ok | Pong | None = None
        self.error: ClientError | None = None


class Requests:
    """All requests that are not answered yet, in order."""

    def __init__(self) -> None:
        self.awaited = 0
        """How many were sent on this connection."""
        self._all: dict[str, Request] = {}
        self._unsent: dict[str, Request] = {}
        self._last_id = 0

    def ask(self, op: str, fields: dict[str, Any], on_done: Callable[[Request], None], *, once: bool) -> Request:
        """Ask as soon as there is a connection; on_done is called with the answer."""
        self._last_id += 1
        request = Request(f"r{self._last_id}", op, fields, on_done, once=once)
        self._all[request.id] = self._unsent[request.id] = request
        return request

    def forget(self, request: Request) -> None:
        """Nobody waits for a request any more: do not ask again."""
        request.once = True
        if self._unsent.pop(request.id, None) is not None:
            del self._all[request.id]

    def take_output(self, *, greeted: bool) -> list[bytes]:
        """The payloads to send now. Before the server has greeted, nothing but the hello."""
        output: list[bytes] = []
        for request in list(self._unsent.values()):
            if greeted or request.op == "hello":
                del self._unsent[request.id]
                self.awaited += 1
                output.append(encode_request(request.op, request.id, request.fields))
        return output

    def answered(self, id: int | str | None, reply: Ok | Pong | None, error: ClientError | None) -> None:
        """An answer has come. Raises ProtocolError where it is none."""
        request = self._all.get(str(id))
        if request is None or request.id in self._unsent:
            raise ProtocolError(f"the server answered a request that it was not asked: {id}")
        if reply is not None and (type(reply) is Pong) is not (request.op == "ping"):
            raise ProtocolError(f"the server answered {request.op} as if it were another request")
        del self._all[request.id]
        self.awaited -= 1
        request.reply, request.error = reply, error
        request.on_done(request)

    def lost(self, reason: str) -> None:
        """The connection is gone: what is asked once has failed, the rest will be asked again."""
        self.awaited = 0
        failed = [request for request in self._all.values() if request.once]
        self._all = {id: request for id, request in self._all.items() if not request.once}
        self._unsent = dict(self._all)
        for request in failed:
            request.error = NotConnected(reason)
            request.on_done(request)

    def of_kind(self, op: str) -> list[Request]:
        """Those with this op."""
        return [request for request in self._all.values() if request.op == op]

    def fail(self, error: ClientError) -> None:
        """The end: nothing will be answered any more."""
        failed, self._all, self._unsent, self.awaited = list(self._all.values()), {}, {}, 0
        for request in failed:
            request.error = error
            request.on_done(request)
