"""The first bytes of a TCP connection tell what it speaks, however the network cuts them."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feeding import fed_every_way
from trisync.wire.dialects import Dialect, skip_blanks, tell_dialect

BOM = b"\xef\xbb\xbf"
METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"PRI"]


def told(chunks: Sequence[bytes]) -> Dialect | None:
    """What the TCP door does until it knows."""
    head = b""
    for chunk in chunks:
        head = skip_blanks(head + chunk)
        dialect = tell_dialect(head)
        if dialect is not None:
            return dialect
    return None


def tell(data: bytes, places: Sequence[int] = ()) -> Dialect | None:
    return fed_every_way(data, told, places)


@pytest.mark.parametrize(
    ("data", "dialect"),
    [
        (b"\0\0\0\x10{", Dialect.FRAMES),
        (b"\xff\xfb\x18", Dialect.TELNET),
        (b'{"op":"ping"}\n', Dialect.LINES),
        (b"\x16\x03\x01", Dialect.TLS),
        (b"hello\n", Dialect.CONSOLE),
        (b"\n", Dialect.CONSOLE),
        (b"\r\n", Dialect.CONSOLE),
        (b"/help", Dialect.CONSOLE),
        ("é".encode(), Dialect.CONSOLE),
        ("\ufeffhello".encode(), Dialect.CONSOLE),
        (b"\xef\xbb\x40", Dialect.CONSOLE),
        (b"[1]\n", Dialect.CONSOLE),
        (b"GETTING there\n", Dialect.CONSOLE),
        (b"G\n", Dialect.CONSOLE),
        (b"get / HTTP/1.1\r\n", Dialect.CONSOLE),
        (b"", None),
        (b" \t ", None),
        (BOM, None),
        (b"GET", None),
        (b"P", None),
    ],
)
def test_the_first_bytes_tell_the_dialect(data: bytes, dialect: Dialect | None) -> None:
    assert tell(data) == dialect


@pytest.mark.parametrize("method", METHODS)
def test_a_browser_on_the_wrong_port_is_found_out(method: bytes) -> None:
    assert tell(method + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n") is Dialect.HTTP
    assert tell(method) is None
    assert tell(method + b"\n") is Dialect.CONSOLE


@pytest.mark.parametrize("byte", [byte for byte in [*range(0x20), 0x7F] if byte not in b"\0\t\n\r\x16"])
def test_control_bytes_are_nobodys_beginning(byte: int) -> None:
    assert tell(bytes([byte]) + b"hello") is Dialect.CONTROL


@pytest.mark.parametrize("blanks", [b" ", b"\t", BOM, BOM + b" ", b" " + BOM + b"\t" + BOM, b"   \t" * 20])
@pytest.mark.parametrize(
    ("data", "dialect"),
    [
        (b"\0\0\0\x10{", Dialect.FRAMES),
        (b"{}", Dialect.LINES),
        (b"hello", Dialect.CONSOLE),
        (b"GET /", Dialect.HTTP),
        (b"\xff\xfb", Dialect.TELNET),
    ],
)
def test_blanks_before_the_first_byte_are_skipped(blanks: bytes, data: bytes, dialect: Dialect) -> None:
    assert tell(blanks + data) is dialect
    assert skip_blanks(blanks + data) == data


def test_blanks_behind_the_first_byte_stay() -> None:
    assert skip_blanks(b" a \t" + BOM) == b"a \t" + BOM


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b" ", b"\t", BOM, b"\xef", b"\xbb", b"\xbf", b"{", b"\0", b"\xff", b"G", b"ET", b" ", b"\n", b"PO"]
        ),
        max_size=6,
    ).map(b"".join),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_the_dialect_does_not_depend_on_how_the_bytes_are_cut(data: bytes, places: list[int]) -> None:
    tell(data, places)


def test_every_dialect_that_is_turned_away_has_a_name_for_the_log() -> None:
    assert len({dialect.value for dialect in Dialect}) == len(Dialect)
