"""A client's side of the doors: an address to a connection that carries payloads. TCP frames, and WebSocket.

What is said over it is not known here. Every connection is given up with TransportError, whatever broke it.
"""

import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import anyio
import anyio.abc
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from trisync.wire.arguments import check_text
from trisync.wire.framing import FrameSplitter, join_frames
from trisync.wire.protocol import REPLY_HEADROOM_BYTES

DEFAULT_URL = "tcp://localhost:2345"

RECEIVE_BYTES = 1 << 16

SEND_BYTES = 1 << 16
"""So much is handed to the network at a time, and kept in this system's buffers, so that a line that is slow shows that
it takes some."""

PAYLOAD_BYTES_MAX = (1 << 24) + REPLY_HEADROOM_BYTES
"""No server's `message_bytes_max` is larger than 16 MiB."""

CLOSE_S = 1.0
"""How long the end of a connection may take: last words, and a WebSocket's closing handshake."""

PORTS = {"tcp": 2345, "tcps": 2345, "ws": 80, "wss": 443}

_USER = re.compile("[^/]*//[^/?#]*@")
"""What a URL with a user begins with (RFC 3986, section 3.2), whether or not all else of it is right."""


class TransportError(Exception):
    """The connection is gone; the message says why."""


class Address(NamedTuple):
    """Where a server is, from a URL."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in ("tcps", "wss")

    def __str__(self) -> str:
        return f"{self.scheme}://{_bracketed(self.host)}:{self.port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_url(url: str) -> Address:
    """The address in a URL. Raises TypeError and ValueError."""
    check_text("a server's address", url)
    if _USER.match(url):  # before anything that shows the URL
        raise ValueError("a server's address has no user and no password: nobody asks for them")
    refusal = ValueError(f"a server's address looks like {DEFAULT_URL} or ws://localhost:8000/, not {url!r}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # which does not always name the URL
        raise refusal from None
    if parts.scheme not in PORTS or not parts.hostname or port == 0:
        raise refusal
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not (path.isascii() and path.isprintable()) or " " in path:
        raise ValueError(f"the path of a server's address is ASCII, and all else percent-encoded, unlike {url!r}")
    if parts.fragment or (parts.scheme.startswith("tcp") and path != "/"):
        raise ValueError(f"a server's address ends with its port, or for ws:// and wss:// with a path, unlike {url!r}")
    return Address(parts.scheme, parts.hostname, port or PORTS[parts.scheme], path)


class Transport(Protocol):
    """An open connection. One task receives, and one sends."""

    on_part: Callable[[], None]
    """Called when the network has taken a part of what is being sent, which is more than SEND_BYTES."""

    @property
    def owes(self) -> bool:
        """Whether its protocol has something to say by itself. The next send() says it, be it of no payloads."""

    async def receive(self) -> list[bytes]:
        """The payloads that the next read brought, which may be none. Raises TransportError at the end."""

    async def send(self, payloads: Sequence[bytes]) -> None:
        """Send payloads in order. Raises TransportError; then, and when cancelled, some may have been sent."""

    async def aclose(self) -> None:
        """End the connection in good order, which may take for ever: abort() comes behind it all the same."""

    async def abort(self) -> None:
        """Let go of the connection at once, also when cancelled; no error if that was done before."""


async def open_transport(address: Address, tls: ssl.SSLContext | None) -> Transport:
    """Connect. Raises OSError, and TransportError where somebody else is behind the door."""
    try:
        if address.encrypted:
            stream: anyio.abc.ByteStream = await _connect_tls(address, tls or ssl.create_default_context())
        else:
            stream = await anyio.connect_tcp(address.host, address.port)
    except UnicodeError as error:  # of IDNA, which not all names can be written in
        raise TransportError(f"{address.host} is no host's name: {error}") from None
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SEND_BYTES)
    if address.scheme.startswith("tcp"):
        return FramesTransport(stream)
    transport = WebSocketTransport(stream)
    try:
        await transport.handshake(address)
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
    return transport


async def _connect_tls(address: Address, context: ssl.SSLContext) -> anyio.abc.ByteStream:
    try:
        return await anyio.connect_tcp(
            address.host, address.port, tls=True, ssl_context=context, tls_standard_compatible=False
        )
    except anyio.EndOfStream:
        raise TransportError("the server closed the connection in the TLS handshake") from None
    except anyio.BrokenResourceError as error:
        raise TransportError(f"in the TLS handshake, {_broken(error)}") from error


def reason_of(error: BaseException) -> str:
    """Why there is no connection: of the attempts at all of a host's addresses, why the first one failed."""
    if isinstance(error, OSError) and error.errno is None and error.__cause__ is not None:
        error = error.__cause__
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and error.errno is not None:
            return os.strerror(error.errno)  # for which asyncio and Trio have words of their own
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


_ENDS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError)
"""What a stream raises at its end. With TLS, a send raises EndOfStream too, once a receive has met the end."""


def _broken(error: Exception) -> str:
    if isinstance(error, anyio.EndOfStream):
        return "the server closed the connection"
    return f"the connection broke: {reason_of(error.__cause__ or error) or type(error).__name__}"


class _OverStream:
    """What both transports do with the stream beneath them."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.on_part: Callable[[], None] = lambda: None
        self._stream = stream
        self._writing = False  # or a write has failed or was cancelled, behind which nothing can be understood

    async def _read(self) -> bytes:
        try:
            return await self._stream.receive(RECEIVE_BYTES)
        except _ENDS as error:
            raise TransportError(_broken(error)) from error

    async def _write(self, data: bytes) -> None:
        if self._writing:
            raise TransportError("what was being sent was cut off")
        self._writing = True
        try:
            for start in range(0, len(data), SEND_BYTES):
                if start:
                    self.on_part()
                await self._stream.send(data[start : start + SEND_BYTES])
        except _ENDS as error:
            raise TransportError(_broken(error)) from error
        self._writing = False

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # its other side is gone, and it is closed all the same

    async def abort(self) -> None:
        await anyio.aclose_forcefully(self._stream)


class FramesTransport(_OverStream):
    """Length-prefixed payloads over TCP."""

    owes = False

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        super().__init__(stream)
        self._splitter = FrameSplitter(PAYLOAD_BYTES_MAX)

    async def receive(self) -> list[bytes]:
        data = await self._read()
        payloads = self._splitter.feed(data)
        if self._splitter.failed is not None:
            hint = "; it speaks HTTP, as a web door does, which is for ws://" if data.startswith(b"HTTP/") else ""
            raise TransportError(f"what is there does not speak frames{hint}")
        return payloads

    async def send(self, payloads: Sequence[bytes]) -> None:
        await self._write(join_frames(payloads))


class WebSocketTransport(_OverStream):
    """A payload in each WebSocket text message. handshake() comes first."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        super().__init__(stream)
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._parts: list[str] = []
        self._size = 0
        self._payloads: list[bytes] = []  # that have come; in the handshake too
        self._owed = b""  # a pong, or the answer to a close
        self._end: TransportError | None = None  # that the server has said; what it said before is taken in first

    @property
    def owes(self) -> bool:
        return bool(self._owed)

    async def handshake(self, address: Address) -> None:
        """Upgrade. Raises TransportError where the server does not."""
        host = f"{_bracketed(address.host)}:{address.port}"
        await self._write(self._protocol.send(Request(host=host, target=address.path)))
        while True:
            try:
                data = await self._read()
            except TransportError as error:
                raise TransportError(f"{error} in the WebSocket handshake; a TCP door is for tcp://") from error
            self._take(data)
            for event in self._protocol.events():
                if isinstance(event, AcceptConnection):
                    self._take_events()
                    return
                if isinstance(event, RejectConnection):
                    raise TransportError(f"the server refuses the WebSocket with HTTP status {event.status_code}")

    async def receive(self) -> list[bytes]:
        if not self._payloads and self._end is None:
            self._take(await self._read())
            self._take_events()
        payloads, self._payloads = self._payloads, []
        if not payloads and self._end is not None:
            answer, self._owed = self._owed, b""
            if not self._writing:
                await self._write(answer)
            raise self._end
        return payloads

    def _take(self, data: bytes) -> None:
        try:
            self._protocol.receive_data(data)
        except RemoteProtocolError as error:
            raise TransportError(f"the server does not speak WebSocket: {error}") from error

    def _take_events(self) -> None:
        try:
            for event in self._protocol.events():
                if isinstance(event, TextMessage):
                    self._take_text(event)
                elif isinstance(event, Ping):
                    # Another task may be sending now. The newest ping counts (RFC 6455, section 5.5.3).
                    self._owed = self._protocol.send(event.response())
                elif isinstance(event, CloseConnection):
                    self._owed = self._protocol.send(event.response())  # from here on, send() refuses payloads
                    reason = f": {event.reason}" if event.reason else ""
                    self._end = TransportError(f"the server closed the WebSocket with code {event.code}{reason}")
                elif isinstance(event, BytesMessage):
                    raise TransportError("the server sent a binary message")
        except (RemoteProtocolError, LocalProtocolError) as error:
            raise TransportError(f"the server does not speak WebSocket: {error}") from error

    def _take_text(self, event: TextMessage) -> None:
        if event.message_finished and not self._parts:
            self._payloads.append(event.data.encode())
            return
        self._parts.append(event.data)
        self._size += len(event.data)
        if self._size > PAYLOAD_BYTES_MAX:
            raise TransportError("the server sent a message that is larger than any may be")
        if event.message_finished:
            self._payloads.append("".join(self._parts).encode())
            self._parts.clear()
            self._size = 0

    async def send(self, payloads: Sequence[bytes]) -> None:
        try:
            frames = [self._protocol.send(TextMessage(data=payload.decode())) for payload in payloads]
        except LocalProtocolError:  # which shows all that was to be sent
            raise self._end or TransportError("the WebSocket is closed") from None
        owed, self._owed = self._owed, b""
        await self._write(b"".join([owed, *frames]))

    async def aclose(self) -> None:
        try:
            if self._end is None:
                await self._write(self._protocol.send(CloseConnection(code=1000)))
            while True:
                await self.receive()
        except TransportError:
            pass  # it is closed now, which is all that is wanted
        await super().aclose()
