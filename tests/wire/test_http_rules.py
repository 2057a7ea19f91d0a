"""Which HTTP requests the web door takes: no page that somebody visits may talk to their localhost."""

import base64
import re

import h11
import pytest

from trisync.wire.http_rules import (
    HttpRefusal,
    header,
    host_name,
    in_origin_form,
    is_loopback,
    refuse_foreign_host,
    refuse_host,
    refuse_origin,
    refuse_upgrade,
    require_origin,
    tokens,
    wants_upgrade,
)

KEY = base64.b64encode(b"0123456789abcdef")
UPGRADE = {
    b"host": b"localhost:8000",
    b"connection": b"Upgrade",
    b"upgrade": b"websocket",
    b"sec-websocket-version": b"13",
    b"sec-websocket-key": KEY,
}


def upgrade(**changes: bytes | None) -> list[tuple[bytes, bytes]]:
    """The headers of a good opening handshake, with changes."""
    fields = UPGRADE | {name.replace("_", "-").encode(): value for name, value in changes.items()}
    return [(name, value) for name, value in fields.items() if value is not None]


def status(refusal: HttpRefusal | None) -> int | None:
    return None if refusal is None else refusal.status


def test_a_header_that_is_repeated_is_joined_and_one_that_is_absent_is_none() -> None:
    headers = [(b"a", b"1"), (b"b", b"x"), (b"a", b"2")]
    assert header(headers, b"a") == b"1, 2"
    assert header(headers, b"c") is None
    assert tokens([(b"connection", b"keep-alive,  Upgrade"), (b"connection", b"X")], b"connection") >= {
        *(b"keep-alive", b"upgrade", b"x"),
    }


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"/a?b", b"/a?b", b"there"),
        (b"*", b"*", b"there"),
        (b"//here/a", b"//here/a", b"there"),
        (b"http://here:80/a/b?c=http://d/", b"/a/b?c=http://d/", b"here:80"),
        (b"HTTPS://here", b"/", b"here"),
        (b"http://here?a", b"/?a", b"here"),
        (b"http://here//a", b"//a", b"here"),
        (b"http:///a", b"/a", b""),
        (b"ftp://here/a", b"ftp://here/a", b"there"),
    ],
)
def test_of_a_target_that_is_a_whole_uri_the_authority_is_the_host(target: bytes, path: bytes, host: bytes) -> None:
    asked = h11.Request(method=b"GET", target=target, headers=[(b"Host", b"there"), (b"X", b"y")], http_version=b"1.0")
    taken = in_origin_form(asked)
    assert (taken.method, taken.target, taken.http_version) == (b"GET", path, b"1.0")
    assert sorted(taken.headers) == [(b"host", host), (b"x", b"y")]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]"])
def test_an_address_of_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "localhost.example.com", "", "1"])
def test_every_other_address_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"localhost", "localhost"),
        (b"LocalHost:8000", "localhost"),
        (b"127.0.0.1:8000", "127.0.0.1"),
        (b"[::1]:8000", "[::1]"),
        (b"[::1]", "[::1]"),
        (b"a-b.example", "a-b.example"),
        *(
            (bad, None)
            for bad in (b"", b":8000", b"a b", b"a, b", b"a:b", b"a:1:2", b"[::1", b"[::1]x", b"\xff", b"a/b")
        ),
        *((bad, None) for bad in (b"user@localhost", b"localhost:-1", b"localhost\t", b"a\0")),
    ],
)
def test_a_host_header_is_a_name_and_perhaps_a_port(host: bytes, name: str | None) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    ("hosts", "on_loopback", "elsewhere"),
    [
        ([b"localhost:8000"], None, None),
        ([b"127.0.0.1"], None, None),
        ([b"[::1]:8000"], None, None),
        ([b"app.localhost"], None, None),
        ([b"evil.example"], 421, None),
        ([b"localhost.evil.example"], 421, None),
        ([b"127.0.0.1.evil.example"], 421, None),
        ([b"notlocalhost"], 421, None),
        ([], 400, 400),
        ([b""], 400, 400),
        ([b"localhost", b"evil.example"], 400, 400),
        ([b"localhost\xff"], 400, 400),
    ],
)
def test_on_a_loopback_address_a_foreign_host_is_dns_rebinding(
    hosts: list[bytes], on_loopback: int | None, elsewhere: int | None
) -> None:
    name = host_name(header([(b"host", host) for host in hosts], b"host") or b"")
    assert status(refuse_host(name) or refuse_foreign_host(name or "")) == on_loopback
    assert status(refuse_host(name)) == elsewhere


@pytest.mark.parametrize(
    ("origin", "answer"),
    [
        (None, None),
        (b"http://localhost:8000", None),
        (b"https://localhost:8000", None),
        (b"HTTP://LOCALHOST:8000", None),
        (b"https://app.example", None),
        (b"http://app.example", 403),
        (b"http://localhost", 403),
        (b"http://localhost:8001", 403),
        (b"http://localhost:80000", 403),
        (b"http://evil.example", 403),
        (b"http://localhost:8000.evil.example", 403),
        (b"null", 403),
        (b"", 403),
        (b"\xff", 403),
    ],
)
def test_only_the_servers_own_pages_and_those_of_the_setting_may_connect(
    origin: bytes | None, answer: int | None
) -> None:
    headers = [(b"host", b"localhost:8000")] + ([] if origin is None else [(b"origin", origin)])
    refusal = refuse_origin(headers, ["https://app.example"])
    assert status(refusal) == answer
    if refusal is not None:
        assert "`origins`" in refusal.reason


def test_two_origins_are_none_of_ours() -> None:
    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"origin", b"http://localhost")]
    assert status(refuse_origin(headers, [])) == 403


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example",
        "HTTPS://App.Example:8443",
        "http://localhost:3000",
        "http://[::1]:8000",
        "http://my_host.example.",
        "https://app.example:80",
        "capacitor://localhost",
        "chrome-extension://abcdefghijklmnop",
        "null",
        "file://",
        "app://",
        "qrc://",
    ],
)
def test_what_a_browser_may_send_as_an_origin_can_be_listed(origin: str) -> None:
    require_origin(origin)
    headers = [(b"host", b"localhost"), (b"origin", origin.encode())]
    assert refuse_origin(headers, [origin]) is None


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ("https://app.example/", "slash or a path: https://app.example"),
        ("https://app.example:8443/chat", "slash or a path: https://app.example:8443"),
        ("https://app.example?a", "slash or a path: https://app.example"),
        ("file:///index.html", "scheme://host"),
        ("*", "no wildcards"),
        ("https://*.example", "no wildcards"),
        ("http://app.example:80", "leave out the port that a scheme has anyway: http://app.example"),
        ("https://[::1]:443", "leave out the port that a scheme has anyway: https://[::1]"),
        ("app.example", "scheme://host"),
        ("localhost:3000", "scheme://host"),
        ("https:app.example", "scheme://host"),
        ("https://", "scheme://host"),
        ("HTTP://", "scheme://host"),
        ("app:///index.html", "scheme://host"),
        ("https://app.example:", "scheme://host"),
        ("https://ada@app.example", "scheme://host"),
        ("https://a.example,https://b.example", "scheme://host"),
        (" https://app.example", "scheme://host"),
        ("https://app.example ", "scheme://host"),
        ("https://bücher.example", "in ASCII"),
        ("", "scheme://host"),
    ],
)
def test_what_no_browser_sends_as_an_origin_is_told_what_is_wrong(origin: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        require_origin(origin)
    assert str(caught.value).startswith(repr(origin))


def test_what_asks_for_a_websocket_is_told_from_what_does_not() -> None:
    assert wants_upgrade(upgrade())
    assert wants_upgrade(upgrade(connection=None))
    assert wants_upgrade(upgrade(upgrade=None))
    assert wants_upgrade(upgrade(sec_websocket_key=None))
    assert wants_upgrade([(b"host", b"localhost"), (b"connection", b"keep-alive, Upgrade")])
    assert not wants_upgrade([(b"host", b"localhost"), (b"connection", b"keep-alive")])
    for connection, offered in (
        (b"Upgrade, HTTP2-Settings", b"h2c"),
        (b"Upgrade", b"TLS/1.2"),
        (b"Upgrade", b"h2c, TLS/1.2"),
    ):
        assert not wants_upgrade([(b"host", b"localhost"), (b"connection", connection), (b"upgrade", offered)])


def test_a_good_opening_handshake_is_taken() -> None:
    assert refuse_upgrade(b"GET", b"1.1", upgrade()) is None
    assert refuse_upgrade(b"GET", b"1.1", upgrade(connection=b"keep-alive, upgrade", upgrade=b"WebSocket")) is None


@pytest.mark.parametrize(
    ("changes", "answer", "reason"),
    [
        ({"connection": None}, 400, "Connection"),
        ({"connection": b"keep-alive"}, 400, "Connection"),
        ({"upgrade": None}, 400, "websocket"),
        ({"upgrade": b"h2c"}, 400, "websocket"),
        ({"sec_websocket_version": None}, 426, "13"),
        ({"sec_websocket_version": b"8"}, 426, "13"),
        ({"sec_websocket_version": b"13, 8"}, 426, "13"),
        ({"sec_websocket_key": None}, 400, "Sec-WebSocket-Key"),
        ({"sec_websocket_key": b""}, 400, "Sec-WebSocket-Key"),
        ({"sec_websocket_key": base64.b64encode(b"15 bytes of key")}, 400, "Sec-WebSocket-Key"),
        ({"sec_websocket_key": b"not base64!"}, 400, "Sec-WebSocket-Key"),
        ({"sec_websocket_key": KEY[:-2]}, 400, "Sec-WebSocket-Key"),
        ({"sec_websocket_key": b"\xff" * 24}, 400, "Sec-WebSocket-Key"),
        ({"sec_websocket_key": KEY + b", " + KEY}, 400, "Sec-WebSocket-Key"),
    ],
)
def test_a_broken_opening_handshake_is_told_what_is_wrong(
    changes: dict[str, bytes | None], answer: int, reason: str
) -> None:
    refusal = refuse_upgrade(b"GET", b"1.1", upgrade(**changes))
    assert refusal is not None
    assert refusal.status == answer
    assert reason in refusal.reason


def test_a_websocket_begins_with_get_and_http_1_1() -> None:
    assert status(refuse_upgrade(b"POST", b"1.1", upgrade())) == 400
    assert status(refuse_upgrade(b"GET", b"1.0", upgrade())) == 400


def test_who_speaks_another_websocket_version_is_told_ours() -> None:
    refusal = refuse_upgrade(b"GET", b"1.1", upgrade(sec_websocket_version=b"8"))
    assert refusal is not None
    assert refusal.headers == ((b"Sec-WebSocket-Version", b"13"),)
