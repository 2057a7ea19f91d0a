"""The files of the web page, read once at the start and kept ready to send."""

from importlib import resources
from typing import NamedTuple

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/connection.js": ("connection.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_TCP_PORT_TAG = b'<meta name="trisync-tcp-port" content="2345">'

PAGE_HEADERS = [
    (
        b"Content-Security-Policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; img-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cache-Control", b"no-cache"),
]


class WebFile(NamedTuple):
    """A file as it is sent."""

    content_type: bytes
    body: bytes


def load_web_files(tcp_port: int) -> dict[str, WebFile]:
    """The page's files by their path; the page says which port netcat takes."""
    folder = resources.files("trisync") / "web"
    files = {}
    for path, (name, content_type) in _FILES.items():
        body = (folder / name).read_bytes()
        if name == "index.html":
            body = body.replace(_TCP_PORT_TAG, _TCP_PORT_TAG.replace(b"2345", str(tcp_port).encode()))
        files[path] = WebFile(content_type.encode(), body)
    return files
