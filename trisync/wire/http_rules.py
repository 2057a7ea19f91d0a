"""Which HTTP requests the web door takes: hosts, origins, and what makes an upgrade to WebSocket. Sans-IO.

A page that somebody visits can send requests to their localhost. So a request that a browser marks with a
foreign Origin may not connect or write, and on a loopback address a foreign Host is DNS rebinding.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import h11

Headers = Sequence[tuple[bytes, bytes]]

WEBSOCKET_VERSION = b"13"

_HOST = re.compile(rb"(\[[^]\x80-\xff]*\]|[\w.~-]+)(?::\d*)?")
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://([\w.~!$&'()+;=%-]+|\[[0-9a-f:.]+\])(:(?P<port>\d+))?", re.ASCII | re.IGNORECASE
)
_ORIGIN_WITHOUT_HOST = re.compile(r"null|(?!https?:)[a-z][a-z0-9+.-]*://", re.ASCII | re.IGNORECASE)
"""As of files, and of pages that an app has in a scheme of its own: `app://` in Android, `qrc://` in Qt."""
_ABSOLUTE = re.compile(rb"https?://(?P<authority>[^/?#]*)/?(?P<rest>.*)", re.IGNORECASE)
_LEFT_OUT = {("http", "80"), ("https", "443")}


class HttpRefusal(NamedTuple):
    """A request that is answered with a status and a line of text."""

    status: int
    reason: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


def in_origin_form(request: h11.Request) -> h11.Request:
    """A request as if its target were a path: of a whole URI the authority is its Host (RFC 9112, section 3.2.2)."""
    uri = _ABSOLUTE.fullmatch(request.target)
    if uri is None:
        return request
    return h11.Request(
        method=request.method,
        target=b"/" + uri["rest"],
        headers=[(b"Host", uri["authority"]), *(pair for pair in request.headers if pair[0] != b"host")],
        http_version=request.http_version,
    )


def header(headers: Headers, name: bytes) -> bytes | None:
    """The value of a header that may come once; None where it is absent, joined where it is repeated."""
    values = [value for key, value in headers if key == name]
    return b", ".join(values) if values else None


def tokens(headers: Headers, name: bytes) -> set[bytes]:
    """The comma-separated tokens of a header, in lower case (RFC 9110, section 5.6.1)."""
    value = header(headers, name) or b""
    return {token.strip().lower() for token in value.split(b",")}


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(host: bytes) -> str | None:
    """The name or address in a Host header, without its port; None where it is malformed."""
    found = _HOST.fullmatch(host)
    return None if found is None else found[1].decode().lower()


def refuse_host(name: str | None) -> HttpRefusal | None:
    """What a request deserves whose Host header names this host, or none."""
    return HttpRefusal(400, "the Host header is missing or malformed") if name is None else None


def refuse_foreign_host(name: str) -> HttpRefusal | None:
    """What a request for this name, perhaps another machine's, deserves where only this one can ask."""
    if is_loopback(name) or name.endswith(".localhost"):
        return None
    return HttpRefusal(421, "this server is on a loopback address; its name is localhost")


def refuse_version(version: bytes) -> HttpRefusal | None:
    """What a version deserves that nobody here speaks: its heads may mean something else."""
    if version in (b"1.1", b"1.0"):
        return None
    return HttpRefusal(400, "the versions served here are HTTP/1.1 and HTTP/1.0")


def refuse_two_lengths(headers: Headers) -> HttpRefusal | None:
    """What a body that ends in two ways deserves: somebody in between may see two requests (RFC 9112, section 6.1)."""
    if header(headers, b"transfer-encoding") is None or header(headers, b"content-length") is None:
        return None
    return HttpRefusal(400, "Content-Length and Transfer-Encoding do not go together")


def require_origin(text: str) -> None:
    """Raise ValueError, which says what is wrong, for what no browser sends as an Origin: it would match nothing."""
    if _ORIGIN_WITHOUT_HOST.fullmatch(text):
        return
    if "*" in text:
        raise ValueError(f"{text!r}: there are no wildcards, each origin is listed by itself")
    found = _ORIGIN.match(text)
    rest = "" if found is None else text[found.end() :]
    if found is None or (rest and rest[0] not in "/?#"):
        raise ValueError(
            f"{text!r}: an origin is scheme://host or scheme://host:port, in ASCII, such as https://app.example"
        )
    if rest:
        raise ValueError(f"{text!r}: an origin ends behind its host and port, without a slash or a path: {found[0]}")
    if (found["scheme"].lower(), found["port"]) in _LEFT_OUT:
        raise ValueError(f"{text!r}: browsers leave out the port that a scheme has anyway: {text.rpartition(':')[0]}")


def refuse_origin(headers: Headers, allowed: Iterable[str]) -> HttpRefusal | None:
    """What the Origin of a request that connects or writes deserves; without one it is not a browser's."""
    origin = header(headers, b"origin")
    if origin is None:
        return None
    host = (header(headers, b"host") or b"").lower()
    if origin.lower() in (b"http://" + host, b"https://" + host):
        return None
    if origin.decode("latin-1").lower() in {known.lower() for known in allowed}:
        return None
    return HttpRefusal(403, "this origin may not connect; the setting `origins` lists those that may")


def wants_upgrade(headers: Headers) -> bool:
    """Whether a request means to become a WebSocket.

    An offer of another protocol may be ignored (RFC 9110, section 7.8): of HTTP/2 by curl, and of TLS, which Apache's
    HttpClient makes with every GET.
    """
    if header(headers, b"sec-websocket-key") is not None:
        return True
    if header(headers, b"upgrade") is None:
        return b"upgrade" in tokens(headers, b"connection")
    return b"websocket" in tokens(headers, b"upgrade")


def refuse_upgrade(method: bytes, version: bytes, headers: Headers) -> HttpRefusal | None:
    """What is wrong with a WebSocket opening handshake (RFC 6455, section 4.2.1), if anything."""
    if method != b"GET" or version < b"1.1":
        return HttpRefusal(400, "a WebSocket begins with GET and HTTP/1.1")
    if b"upgrade" not in tokens(headers, b"connection"):
        return HttpRefusal(400, "an upgrade needs the header Connection: Upgrade")
    if b"websocket" not in tokens(headers, b"upgrade"):
        return HttpRefusal(400, "the upgrade served here is websocket")
    if header(headers, b"sec-websocket-version") != WEBSOCKET_VERSION:
        return HttpRefusal(426, "the WebSocket version is 13", ((b"Sec-WebSocket-Version", WEBSOCKET_VERSION),))
    try:
        key = base64.b64decode(header(headers, b"sec-websocket-key") or b"", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        return HttpRefusal(400, "Sec-WebSocket-Key is 16 bytes in base64")
    return None
