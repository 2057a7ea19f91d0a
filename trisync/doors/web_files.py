"""The files of the web page, read once at the start and kept ready to send."""

from importlib import resources
from pathlib import PurePath

from trisync.wire.http_answers import Answer

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES = (
    *("index.html", "icon.svg", "trisync.js", "trisync.d.ts"),
    *(f"{name}.js" for name in ("app", "board", "dom", "log", "people", "rows")),
    *(f"{name}.css" for name in ("style", "bar", "strip", "chat", "board")),
)
_TCP_PORT_TAG = b'<meta name="trisync-tcp-port" content="2345">'

PAGE_HEADERS = [
    (
        b"Content-Security-Policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; img-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"Referrer-Policy", b"no-referrer"),
]
"""What they have beside common_headers()."""


def load_web_files(tcp_port: int) -> dict[str, Answer]:
    """The page's files by their path; the page says which port netcat takes."""
    folder = resources.files("trisync") / "web"
    files = {}
    for name in _FILES:
        path, body = f"/{name}", (folder / name).read_bytes()
        if name == "index.html":
            path, body = "/", body.replace(_TCP_PORT_TAG, _TCP_PORT_TAG.replace(b"2345", str(tcp_port).encode()))
        files[path] = Answer(200, body, content_type=_TYPES[PurePath(name).suffix].encode())
    return files
