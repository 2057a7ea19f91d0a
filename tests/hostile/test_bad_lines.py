"""The lines dialect and the console: lines that do not end, that are too long, and what is in them."""

import pytest

from tests.hostile.arena import LOWEST_LIMIT, MIB, Undisturbed, memory_bounded
from tests.hostile.raw_peers import RawPeer

PING = b'{"op":"ping","id":1}'


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n\n", b"\r\n\r\n", b"\n\r\n"], ids=repr)
async def test_lines_end_with_lf_or_crlf_and_empty_ones_are_ignored(undisturbed: Undisturbed, ending: bytes) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as peer:
        await peer.send_raw((PING + ending) * 3)
        for _ in range(3):
            assert await peer.receive() == {"op": "pong", "id": 1}
        for byte in ending + PING + ending:
            await peer.send_raw(bytes((byte,)))
        assert await peer.receive() == {"op": "pong", "id": 1}


async def test_a_carriage_return_alone_ends_no_line(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.tcp() as peer:
        await peer.send_raw(PING + b"\r" + PING + b"\n")
        assert (await peer.receive_error())["code"] == "bad_json"
        await peer.still_served()


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"], ids=repr)
async def test_a_megabyte_is_accepted_and_one_byte_more_is_not(undisturbed: Undisturbed, ending: bytes) -> None:
    async with undisturbed() as arena, arena.tcp() as peer:
        request = b'{"op":"publish","id":7,"channel":"attacked","data":"%b"}'
        filling = b"x" * (MIB - len(request) + 2)
        await peer.send_raw(request % filling + ending)
        assert await peer.receive() == {"op": "ok", "id": 7, "offset": 1}
        await peer.send_raw(request % (filling + b"x") + ending)
        await peer.left_with("too_large")


async def test_the_limit_that_is_set_is_the_one_that_counts(undisturbed: Undisturbed) -> None:
    async with undisturbed(message_bytes_max=LOWEST_LIMIT) as arena, arena.tcp() as peer:
        await peer.send_raw(PING.ljust(LOWEST_LIMIT) + b"\r\n")
        assert (await peer.receive())["op"] == "pong"
        await peer.send_raw(PING.ljust(LOWEST_LIMIT + 1) + b"\n")
        error = await peer.receive_error()
        assert (error["code"], error["limit"], error["value"]) == ("too_large", "message_bytes_max", LOWEST_LIMIT)
        assert await peer.receive_rest() == b""


@pytest.mark.parametrize("first", [b'{"op":"publish","data":"', b"person "], ids=["lines", "console"])
async def test_a_line_that_never_ends_is_refused_and_costs_no_memory(undisturbed: Undisturbed, first: bytes) -> None:
    async with undisturbed() as arena, arena.tcp() as peer:
        with memory_bounded(8 * MIB):
            await peer.send_raw(first)
            await peer.pour(b"x" * 65536, 500)
        assert b"too_large" in await peer.receive_rest()


@pytest.mark.parametrize("sent", [b"{", b'{"op":"ping"}', b'{"op":"ping"}\r', PING + b"\n{"], ids=repr)
async def test_a_line_that_stops_half_way_is_refused_at_its_deadline(undisturbed: Undisturbed, sent: bytes) -> None:
    async with undisturbed(half_message_s=0.2) as arena, arena.tcp() as peer:
        await peer.send_raw(sent)
        if b"\n" in sent:
            assert (await peer.receive())["op"] == "pong"
        await peer.left_with("bad_request")


async def test_a_line_that_comes_drop_by_drop_has_no_more_time_than_one_that_stops(undisturbed: Undisturbed) -> None:
    async with undisturbed(half_message_s=0.3) as arena, arena.tcp() as peer:
        async with peer.dripping(b"{"):
            assert (await peer.receive_error())["code"] == "bad_request"


async def test_a_client_that_hangs_up_within_a_line_has_asked_for_nothing(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena:
        async with arena.tcp() as peer:
            await peer.send_raw(b'{"op":"publish","channel":"attacked","data":1}')
        async with arena.speaking("lines") as other:
            assert (await other.request("history", channel="attacked"))["offset"] == 0


async def test_the_other_dialects_do_not_begin_within_lines(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.speaking("lines") as peer:
        for words in (b"GET / HTTP/1.1", b"/quit", b"\xff\xf4\xff\xfd\x06", b"\x00\x00\x00\x05", b"hello"):
            assert (await peer.refused(words))["code"] == "bad_json", words
        await peer.still_served()


# The console


async def meet_console(peer: RawPeer, channel: bytes = b"attacked") -> None:
    await peer.send_raw(b"/join %b\n" % channel)
    assert await peer.receive_bytes() == b"* you are in #%b, which is at 0" % channel


async def test_a_person_whose_words_are_not_utf8_is_told_and_goes_on(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.tcp() as person:
        await meet_console(person)
        for words in (b"\xe9t\xe9", b"\xc3", b"\xed\xa0\x80"):
            await person.send_raw(words + b"\n")
            assert (await person.receive_bytes()).endswith(b"(bad_json)")
        await person.send_raw(b"hello\n")
        assert await person.receive_bytes() == b"#attacked 1 anonymous: hello"


async def test_a_person_whose_line_is_too_long_is_told_and_left(undisturbed: Undisturbed) -> None:
    async with undisturbed(message_bytes_max=LOWEST_LIMIT) as arena, arena.tcp() as person:
        await meet_console(person)
        await person.send_raw(b"x" * (LOWEST_LIMIT + 1) + b"\n")
        assert (await person.receive_bytes()).endswith(b"(too_large)")
        assert await person.receive_rest() == b""


@pytest.mark.parametrize("typed", [b"\x01", b'"', b"\\", b"\x1b"], ids=repr)
async def test_what_a_person_typed_never_becomes_a_message_over_the_limit(
    undisturbed: Undisturbed, typed: bytes
) -> None:
    # JSON writes some characters with six: what fits into a line may not fit into a message.
    async with (
        undisturbed(log_lines=1, message_bytes_max=LOWEST_LIMIT) as arena,
        arena.tcp() as person,
        arena.speaking("frames") as reader,
    ):
        await reader.request("subscribe", channel="attacked")
        await meet_console(person)
        await person.send_raw(typed * (LOWEST_LIMIT // len(typed)) + b"\n")
        assert b"too_large" in await person.receive_bytes()
        assert (await reader.request("history", channel="attacked"))["offset"] == 0


@pytest.mark.parametrize(
    "command",
    [
        b"/history 00100" + b"0" * 5000,
        b"/history 00100" + b"0" * 20,
        b"/history 99999999999999999999",
        b"/history -1",
        b"/history " + "²".encode(),
        b"/join attacked 00100" + b"0" * 5000,
        b"/join attacked 1 2",
        b"/join",
        b"/join a b c",
        b"/join " + b"x" * 201,
        b"/join $system",
        b"/name",
        b"/name " + b"x" * 65,
        b"/name bell\x07",
        b"/nope\x1b[2J",
        b"/",
        b"/ join",
    ],
    ids=lambda command: repr(command[:30]),
)
async def test_a_command_that_is_wrong_is_explained_and_the_person_goes_on(
    undisturbed: Undisturbed, command: bytes
) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as person:
        await meet_console(person)
        await person.send_raw(command + b"\n")
        answer = await person.receive_bytes()
        assert answer.startswith(b"! "), answer
        assert answer.decode().isprintable()
        await person.send_raw(b"hello\n")
        assert await person.receive_bytes() == b"#attacked 1 anonymous: hello"


async def test_what_a_person_types_cannot_move_the_cursor_of_others(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as person, arena.tcp() as other:
        await meet_console(other)
        await meet_console(person)
        await person.send_raw(b"\x1b[2J\x07\x9b\r\xc2\x9b2J\n".replace(b"\x9b\r", b""))
        assert await other.receive_bytes() == b"#attacked 1 anonymous: \\x1b[2J\\x07\\x9b2J"


async def test_half_a_typed_line_has_no_deadline(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=1, half_message_s=0.2) as arena, arena.tcp() as person, arena.tcp() as machine:
        await person.send_raw(b"hel")
        await machine.send_raw(b"{")  # begun later, and its deadline passes
        await machine.left_with("bad_request")
        await person.send_raw(b"lo\n")
        assert await person.receive_bytes() == b"#lobby 1 anonymous: hello"


async def test_json_asked_for_on_the_console_is_refused_as_json_is(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.tcp() as person:
        await person.send_raw(b"/json\nhello\n" + PING + b"\n")
        assert (await person.receive_error())["code"] == "bad_json"
        assert await person.receive() == {"op": "pong", "id": 1}
