"""How a connection to the TCP door may begin: other protocols, telnet's negotiation, blanks, and silence."""

import random

import pytest
import trio

from tests.hostile.arena import MIB, Undisturbed, memory_bounded, publish
from tests.hostile.raw_peers import RawPeer
from trisync.core.outbox import RECEIVE_BYTES

PING = b'{"op":"ping","id":1}'
PONG = {"op": "pong", "id": 1}
IAC, DONT, DO, WONT, WILL, SB, SE = (bytes((code,)) for code in (255, 254, 253, 252, 251, 250, 240))
ECHO, NAWS, TERMINAL_TYPE = b"\x01", b"\x1f", b"\x18"

CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32))

# As a form on a page sends it, with a request of the lines dialect in its body.
BROWSER_POST = (
    b"POST / HTTP/1.1\r\nHost: localhost:2345\r\nOrigin: https://evil.example\r\nContent-Type: text/plain\r\n\r\n"
    b'{"op":"publish","channel":"attacked","data":"from a page"}\r\n'
)


async def nothing_was_published(peer: RawPeer) -> None:
    for channel in ("attacked", "lobby"):
        assert (await peer.request("history", channel=channel))["offset"] == 0


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI")


@pytest.mark.parametrize("cut", [None, 1, 2])
async def test_an_http_request_is_hung_up_on_without_a_word_and_nothing_in_it_counts(
    undisturbed: Undisturbed, cut: int | None
) -> None:
    async with undisturbed(log_lines=len(METHODS)) as arena:
        for method in METHODS:
            async with arena.tcp() as peer:
                request = BROWSER_POST.replace(b"POST", method.encode())
                if cut is not None:
                    await peer.send_raw(request[:cut])
                await peer.pour(request[cut or 0 :], 1)
                assert await peer.receive_rest() == b"", method
        async with arena.speaking("lines") as other:
            await nothing_was_published(other)


@pytest.mark.parametrize("blanks", [b" ", b"\t \t", b"\xef\xbb\xbf", b" \xef\xbb\xbf "], ids=repr)
async def test_blanks_hide_no_http_request(undisturbed: Undisturbed, blanks: bytes) -> None:
    async with undisturbed() as arena, arena.tcp() as peer:
        await peer.send_raw(blanks + BROWSER_POST)
        assert await peer.receive_rest() == b""


async def test_telnet_negotiation_hides_no_http_request(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.tcp() as peer:
        await peer.send_raw(IAC + DO + ECHO + BROWSER_POST)
        assert await peer.receive_rest() == IAC + WONT + ECHO


async def test_tls_and_control_bytes_are_hung_up_on_without_a_word(undisturbed: Undisturbed) -> None:
    control_bytes = (*range(1, 9), 11, 12, *range(14, 32), 127)
    openings = [CLIENT_HELLO, *[bytes((code,)) + PING + b"\n" for code in control_bytes]]
    async with undisturbed(log_lines=len(openings)) as arena:
        for opening in openings:
            async with arena.tcp() as peer:
                await peer.pour(opening, 1)
                assert await peer.receive_rest() == b"", opening


@pytest.mark.parametrize(
    "blanks", [b" ", b"\t", b"\xef\xbb\xbf", b" \t\xef\xbb\xbf \xef\xbb\xbf\t", b" " * 100_000], ids=len
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_blanks_and_byte_order_marks_before_the_first_byte_are_skipped(
    undisturbed: Undisturbed, blanks: bytes, at_once: bool
) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as peer:
        if at_once or len(blanks) > 100:
            await peer.send_raw(blanks + PING + b"\n")
        else:
            for byte in blanks + PING + b"\n":
                await peer.send_raw(bytes((byte,)))
        assert await peer.receive() == PONG


async def test_blanks_without_end_cost_no_memory(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as peer:
        with memory_bounded(MIB):
            await peer.pour(b" \t" * 32768, 200)
            await peer.send_raw(PING + b"\n")
            assert await peer.receive() == PONG


# Telnet


async def test_telnet_options_are_refused_and_everything_else_of_it_is_stripped(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as peer:
        await peer.send_raw(
            (IAC + DO + ECHO)
            + (IAC + WILL + NAWS)
            + (IAC + WONT + ECHO)  # these two need no answer
            + (IAC + DONT + ECHO)
            + (IAC + SB + TERMINAL_TYPE + b"\x00{xterm}\n" + IAC + IAC + IAC + SE)
            + (IAC + b"\xf1")  # NOP
        )
        assert await peer.stream.receive_some(100) == IAC + WONT + ECHO + IAC + DONT + NAWS
        await peer.send_raw(b"/name te" + IAC + b"\xf6" + b"lly\n")
        assert (await peer.receive_bytes()).startswith(b"* ")
        await peer.send_raw(b"hi" + IAC + WILL + ECHO + b" there\n")
        assert await peer.receive_bytes() == IAC + DONT + ECHO + b"#lobby 1 telly: hi there"


async def test_telnet_commands_may_be_cut_anywhere(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as peer:
        for byte in IAC + DO + ECHO + IAC + SB + NAWS + b"\x00\x50" + IAC + IAC + IAC + SE + b"hello\r\n":
            await peer.send_raw(bytes((byte,)))
        assert await peer.receive_bytes() == IAC + WONT + ECHO + b"#lobby 1 anonymous: hello"


async def test_telnet_commands_may_come_when_a_person_has_typed_already(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as peer:
        await peer.send_raw(b"hello\n")
        assert await peer.receive_bytes() == b"#lobby 1 anonymous: hello"
        await peer.send_raw(IAC + b"\xf4" + IAC + DO + b"\x06" + b"again\n")  # as Linux telnet sends at Ctrl-C
        assert await peer.receive_bytes() == IAC + WONT + b"\x06" + b"#lobby 2 anonymous: again"


async def test_after_telnet_negotiation_the_dialect_is_chosen_again(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena:
        for negotiation in (IAC + WONT + ECHO, IAC + SB + b"{\n" + IAC + SE, (IAC + b"\xf1") * 1000):
            async with arena.tcp() as peer:
                await peer.send_raw(negotiation)
                await peer.send_raw(PING + b"\n")
                assert await peer.receive() == PONG


async def test_a_subnegotiation_without_end_costs_no_memory(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as peer:
        with memory_bounded(MIB // 2):
            await peer.send_raw(IAC + SB)
            await peer.pour(b"x" * 65536, 4)
            await peer.send_raw(IAC + SE + PING + b"\n")
            assert await peer.receive() == PONG


@pytest.mark.parametrize("said", [b"", PING + b"\n", b"/help\n"], ids=["nothing", "JSON", "a command"])
async def test_a_telnet_that_asks_without_reading_the_answers_is_not_read_from(
    undisturbed: Undisturbed, said: bytes
) -> None:
    most = 64 * 1024
    async with (
        undisturbed(log_lines=0, backlog_bytes_max=most) as arena,
        arena.tcp() as peer,
        arena.speaking("lines") as other,
    ):
        await peer.send_raw(IAC + DO + ECHO + said)
        connection = await arena.squeeze(peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.pour, (IAC + DO + ECHO) * 20_000, 100)
            # Not until it is over: the kernel may take some of it at once, and then all wait for the rest.
            await arena.until(lambda: arena.peak_backlog(connection) > most)
            await publish(other, "so that the server has many turns", 50)
            nursery.cancel_scope.cancel()
        # What was read at the mark is answered, and with it a command that had begun before.
        assert arena.peak_backlog(connection) <= most + RECEIVE_BYTES + len(IAC + DO)


@pytest.mark.parametrize("garbage", [IAC + IAC + b"hello\n", IAC + SE + IAC + IAC, IAC + IAC + IAC + IAC], ids=repr)
async def test_garbage_in_telnet_clothes_ends_at_most_its_own_connection(
    undisturbed: Undisturbed, garbage: bytes
) -> None:
    async with undisturbed() as arena, arena.tcp() as peer:
        await peer.pour(garbage, 1)
        assert await peer.receive_rest() == b""


# Anything else is a person


@pytest.mark.parametrize(
    "opening", [b"\n", b"\r\n", b"[]\n", b"hello\n", b"GET\n", b"get / HTTP/1.1\n", b"\x80\n"], ids=repr
)
async def test_what_is_no_machine_is_met_as_a_person(undisturbed: Undisturbed, opening: bytes) -> None:
    async with undisturbed(log_lines=int(opening == b"\x80\n")) as arena, arena.tcp() as peer:
        await peer.send_raw(opening)
        expected = {b"\n": b"Welcome", b"\x80": b"! "}.get(opening.strip(b"\r\n") or b"\n", b"#lobby 1 anonymous: ")
        assert (await peer.receive_bytes()).startswith(expected)


@pytest.mark.parametrize("seed", range(12))
async def test_random_bytes_harm_nobody(undisturbed: Undisturbed, seed: int) -> None:
    async with undisturbed(log_lines=None) as arena:
        async with arena.tcp() as peer:
            await peer.pour(random.Random(seed).randbytes(20_000), 1)
        async with arena.web() as client:
            await client.pour(random.Random(-seed).randbytes(20_000), 1)


# Silence


async def test_the_server_never_speaks_first(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.tcp() as silent, arena.speaking("lines") as other:
        await other.still_served()  # the silent one came first: it was met by now
        await silent.still_served()  # the first that it hears is the answer


async def test_who_says_nothing_is_left_after_a_while(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=3, silent_s=0.2) as arena:
        for opening in (b"", b" ", b"PO"):
            async with arena.tcp() as peer:
                if opening:
                    await peer.send_raw(opening)
                assert await peer.receive_rest() == b""


async def test_of_too_many_that_say_nothing_the_oldest_is_closed(undisturbed: Undisturbed) -> None:
    async with (
        undisturbed(silent_max=2) as arena,
        arena.tcp() as first,
        arena.tcp() as second,
        arena.tcp() as third,
    ):
        assert await first.receive_rest() == b""
        for peer in (second, third):
            await peer.still_served()


async def test_who_comes_when_all_places_are_taken_is_closed_and_said_once(undisturbed: Undisturbed) -> None:
    async with undisturbed(connections_max=4) as arena, arena.speaking("lines") as third:
        async with arena.speaking("lines"):
            for _ in range(5):
                async with arena.tcp() as peer:
                    assert await peer.receive_rest() == b""
                async with arena.web() as client:
                    assert await client.receive_rest() == b""
        await arena.only_remain(3)
        async with arena.speaking("frames"):
            await third.still_served()


async def test_who_connects_and_hangs_up_at_once_leaves_nothing_behind(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena:
        for _ in range(30):
            async with arena.tcp():
                pass
            async with arena.web():
                pass
