"""Telnet: commands are taken out of what people type, options are refused, and text passes as it is."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feeding import byte_by_byte, fed_every_way
from trisync.wire.telnet import TelnetFilter, edited

IAC, DONT, DO, WONT, WILL, SB, SE, NOP, INTERRUPT = 0xFF, 0xFE, 0xFD, 0xFC, 0xFB, 0xFA, 0xF0, 0xF1, 0xF4


def filtered(data: bytes, places: Sequence[int] = ()) -> tuple[bytes, bytes]:
    """The text in the data and the answers to it, the same however the data is cut."""

    def feed(chunks: Sequence[bytes]) -> tuple[bytes, bytes]:
        telnet = TelnetFilter()
        parts = [telnet.feed(chunk) for chunk in chunks]
        return b"".join(text for text, _ in parts), b"".join(answer for _, answer in parts)

    return fed_every_way(data, feed, places)


def test_text_without_commands_passes_as_it_is() -> None:
    for text in (b"", b"hello\r\n", "grüß 😀\n".encode(), bytes(range(255))):
        assert filtered(text) == (text, b"")


def test_every_option_is_refused_in_the_terms_it_was_offered_in() -> None:
    data = bytes([IAC, DO, 1, IAC, WILL, 3]) + b"hi" + bytes([IAC, DO, 31, IAC, WILL, IAC])
    assert filtered(data) == (b"hi", bytes([IAC, WONT, 1, IAC, DONT, 3, IAC, WONT, 31, IAC, DONT, IAC]))


def test_a_refusal_is_not_answered_so_that_two_sides_cannot_talk_for_ever() -> None:
    assert filtered(bytes([IAC, WONT, 1, IAC, DONT, 3]) + b"x") == (b"x", b"")


def test_two_byte_commands_are_taken_out() -> None:
    assert filtered(b"a" + bytes([IAC, NOP]) + b"b" + bytes([IAC, INTERRUPT]) + b"c") == (b"abc", b"")


def test_a_doubled_command_byte_is_data() -> None:
    assert filtered(b"a" + bytes([IAC, IAC]) + b"b") == (b"a\xffb", b"")


def test_a_subnegotiation_is_taken_out_whole() -> None:
    data = b"a" + bytes([IAC, SB, 31, 0, 80, IAC, IAC, 24, IAC, SE]) + b"b"
    assert filtered(data) == (b"ab", b"")


def test_half_a_command_is_waited_for() -> None:
    telnet = TelnetFilter()
    assert telnet.feed(b"a\xff") == (b"a", b"")
    assert telnet.feed(bytes([DO])) == (b"", b"")
    assert telnet.feed(b"\x01b") == (b"b", bytes([IAC, WONT, 1]))


def test_what_telnet_sends_when_it_connects_leaves_the_typed_line() -> None:
    options = b"".join(bytes([IAC, WILL, option]) for option in (24, 31, 32, 33, 34, 39, 5))
    text, answers = filtered(options + b"hello\r\n")
    assert text == b"hello\r\n"
    assert answers == options.replace(bytes([IAC, WILL]), bytes([IAC, DONT]))


codes = st.sampled_from([IAC, IAC, IAC, DONT, DO, WONT, WILL, SB, SE, NOP, 0, 1, 65, 66])


@settings(max_examples=400, deadline=None)
@given(st.lists(codes, max_size=25).map(bytes), st.lists(st.integers(0, 25), max_size=4))
def test_commands_come_out_the_same_however_they_are_cut(data: bytes, places: list[int]) -> None:
    _, answers = filtered(data, places)
    assert len(answers) <= len(data)
    assert set(answers[1::3]) <= {WONT, DONT}


def test_no_command_makes_the_filter_remember_more_than_two_bytes() -> None:
    telnet = TelnetFilter()
    for chunk in byte_by_byte(bytes([IAC, SB, *range(200), IAC, IAC, IAC]) * 50):
        telnet.feed(chunk)
        assert len(telnet._pending) <= 2


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (b"hello", b"hello"),
        (b"helk\x08lo", b"hello"),
        (b"helk\x7flo", b"hello"),
        (b"\x08\x7fa", b"a"),
        (b"ab\x08\x08\x08c", b"c"),
        ("gré\x08e".encode(), b"gre"),
        ("😀\x7fx".encode(), b"x"),
        (b"\0a\0", b"a"),
        (b"\xff\x08a", b"a"),
        (b"\xc3b", b"\xc3b"),
        (b"\xc3b\x08", b"\xc3"),
    ],
)
def test_a_line_is_what_its_writer_meant(typed: bytes, meant: bytes) -> None:
    assert edited(typed) == meant


@given(st.binary(max_size=30))
@settings(deadline=None)
def test_editing_never_fails_and_leaves_no_backspaces(line: bytes) -> None:
    assert not set(edited(line)) & {0, 8, 0x7F}
