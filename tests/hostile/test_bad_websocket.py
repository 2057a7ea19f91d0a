"""WebSocket clients that break RFC 6455 or the wire: each gets its close code, without an `error` before it."""

import pytest

from tests.hostile.arena import LOWEST_LIMIT, MIB, Undisturbed, memory_bounded
from tests.hostile.raw_peers import BINARY, CLOSE, CONTINUATION, FIN, NOT_UTF8, PING, PONG, TEXT, frame

REQUEST = b'{"op":"ping","id":1}'
ANSWER = {"op": "pong", "id": 1}
PUBLISH = b'{"op":"publish","id":2,"channel":"attacked","data":"%b"}'

PROTOCOL_ERRORS = {
    "an unmasked text": frame(FIN | TEXT, REQUEST, mask=b""),
    "an unmasked ping": frame(FIN | PING, b"", mask=b""),
    "an unmasked close": frame(FIN | CLOSE, b"\x03\xe8", mask=b""),
    "an unmasked binary": frame(FIN | BINARY, b"x", mask=b""),
    "reserved bit 1 (compression that was not agreed)": frame(FIN | 0x40 | TEXT, REQUEST),
    "reserved bit 2": frame(FIN | 0x20 | TEXT, REQUEST),
    "reserved bit 3": frame(FIN | 0x10 | TEXT, REQUEST),
    "a reserved bit on a ping": frame(FIN | 0x40 | PING),
    "a reserved bit on a binary": frame(FIN | 0x40 | BINARY, b"x"),
    "a reserved bit on a fragment": frame(0x40 | TEXT, REQUEST),
    **{f"opcode {opcode:#x}": frame(FIN | opcode, b"x") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a ping of 126 bytes": frame(FIN | PING, b"x" * 126),
    "a pong of 65536 bytes": frame(FIN | PONG, b"x" * 65536),
    "a close of 126 bytes": frame(FIN | CLOSE, b"\x03\xe8" + b"x" * 124),
    "a ping in fragments": frame(PING, b"x"),
    "a close in fragments": frame(CLOSE, b"\x03\xe8"),
    "a continuation of nothing": frame(FIN | CONTINUATION, REQUEST),
    "a fragment of nothing": frame(CONTINUATION, REQUEST),
    "a text within a fragmented text": frame(TEXT, b"{") + frame(FIN | TEXT, REQUEST),
    "a binary within a fragmented text": frame(TEXT, b"{") + frame(FIN | BINARY, b"x"),
    "a second beginning": frame(TEXT, b"{") + frame(TEXT, b"{"),
    "a short length in two bytes": bytes((FIN | TEXT, 0xFE)) + b"\x00\x7d" + bytes(4 + 125),
    "a length of two bytes in eight": bytes((FIN | TEXT, 0xFF)) + (0xFFFF).to_bytes(8, "big"),
    "a negative length": bytes((FIN | TEXT, 0xFF)) + (1 << 63).to_bytes(8, "big"),
    "a binary of a negative length": bytes((FIN | BINARY, 0xFF)) + (1 << 63).to_bytes(8, "big"),
    "a close of one byte": frame(FIN | CLOSE, b"\x03"),
    **{
        f"a close of code {code}": frame(FIN | CLOSE, code.to_bytes(2, "big"))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lines": REQUEST + b"\n",
}


@pytest.mark.parametrize("attack", PROTOCOL_ERRORS.values(), ids=PROTOCOL_ERRORS)
async def test_a_frame_that_breaks_the_rfc_closes_with_1002(undisturbed: Undisturbed, attack: bytes) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        await peer.still_served()
        await peer.send_raw(attack)
        await peer.closed_with(1002)


@pytest.mark.parametrize("attack", [PROTOCOL_ERRORS["an unmasked text"], PROTOCOL_ERRORS["a close of one byte"]])
async def test_the_first_frame_may_break_the_rfc_right_behind_the_handshake(
    undisturbed: Undisturbed, attack: bytes
) -> None:
    async with undisturbed() as arena, arena.websocket(behind=attack) as peer:
        await peer.closed_with(1002)


@pytest.mark.parametrize("attack", [frame(FIN | BINARY, REQUEST), frame(BINARY, b"x"), frame(FIN | BINARY)])
async def test_a_binary_message_closes_with_1003(undisturbed: Undisturbed, attack: bytes) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        await peer.send_raw(attack)
        await peer.closed_with(1003)


async def test_a_binary_header_is_enough_to_be_refused(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        with memory_bounded(MIB // 2):
            await peer.send_raw(frame(FIN | BINARY, length=2**62)[:10])
            await peer.closed_with(1003)


@pytest.mark.parametrize("text", NOT_UTF8.values(), ids=NOT_UTF8)
async def test_a_text_of_invalid_utf8_closes_with_1007(undisturbed: Undisturbed, text: bytes) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | TEXT, PUBLISH % text))
        await peer.closed_with(1007)


@pytest.mark.parametrize("text", NOT_UTF8.values(), ids=NOT_UTF8)
async def test_fragments_of_invalid_utf8_close_with_1007(undisturbed: Undisturbed, text: bytes) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        start, end = PUBLISH.split(b"%b")
        for at, byte in enumerate(text):
            await peer.send_raw(frame(CONTINUATION if at else TEXT, (b"" if at else start) + bytes((byte,))))
        await peer.pour(frame(FIN | CONTINUATION, end), 1)
        await peer.closed_with(1007)


async def test_invalid_utf8_in_a_fragment_is_found_before_the_message_ends(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        await peer.send_raw(frame(TEXT, b'{"x":"\xff'))
        await peer.closed_with(1007)


async def test_a_character_may_be_cut_by_fragments(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket() as peer:
        await peer.request("subscribe", channel="attacked")
        message = PUBLISH % "ä€😀".encode()
        for at, byte in enumerate(message):
            last = FIN if at == len(message) - 1 else 0
            await peer.send_raw(frame(last | (CONTINUATION if at else TEXT), bytes((byte,))))
        assert await peer.receive() == {"op": "ok", "id": 2, "offset": 1}
        assert (await peer.receive())["data"] == "ä€😀"


# Size


async def test_a_megabyte_is_accepted_and_one_byte_more_closes_with_1009(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        filling = b"x" * (MIB - len(PUBLISH) + 2)
        await peer.send_raw(frame(FIN | TEXT, PUBLISH % filling))
        assert await peer.receive() == {"op": "ok", "id": 2, "offset": 1}
        await peer.send_raw(frame(FIN | TEXT, length=MIB + 1))
        await peer.closed_with(1009)


@pytest.mark.parametrize("length", [MIB + 1, 2**31, 2**32, 2**63 - 1])
async def test_a_length_over_the_limit_closes_with_1009_before_anything_is_read_or_allocated(
    undisturbed: Undisturbed, length: int
) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        with memory_bounded(MIB // 2):
            await peer.send_raw(frame(FIN | TEXT, length=length, mask=b"mask")[:10])
            await peer.closed_with(1009)


async def test_characters_do_not_count_but_bytes(undisturbed: Undisturbed) -> None:
    async with undisturbed(message_bytes_max=LOWEST_LIMIT) as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | TEXT, PUBLISH % ("€" * 300).encode()))
        assert (await peer.receive())["op"] == "ok"
        await peer.send_raw(frame(FIN | TEXT, PUBLISH % ("€" * 400).encode()))
        await peer.closed_with(1009)


@pytest.mark.parametrize("pieces", [2, 5, 300])
async def test_fragments_over_the_limit_close_with_1009(undisturbed: Undisturbed, pieces: int) -> None:
    size = LOWEST_LIMIT // pieces
    async with undisturbed(message_bytes_max=LOWEST_LIMIT) as arena, arena.websocket() as peer:
        whole = PUBLISH % (b"x" * (LOWEST_LIMIT - len(PUBLISH) + 2))
        parts = [whole[at : at + size] for at in range(0, LOWEST_LIMIT, size)]
        for at, part in enumerate(parts):
            last = FIN if at == len(parts) - 1 else 0
            await peer.send_raw(frame(last | (CONTINUATION if at else TEXT), part))
        assert (await peer.receive())["op"] == "ok"
        for at, part in enumerate(parts):
            await peer.send_raw(frame(CONTINUATION if at else TEXT, part))
        await peer.pour(frame(CONTINUATION, b"x"), 1)
        await peer.closed_with(1009)


async def test_a_message_in_endless_fragments_costs_no_memory(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        piece = frame(CONTINUATION, b"x" * 60_000)
        with memory_bounded(8 * MIB):
            await peer.send_raw(frame(TEXT, b"x"))
            await peer.pour(piece, 300)
        await peer.closed_with(1009)


async def test_endless_empty_continuations_end_at_the_deadline_and_cost_no_memory(undisturbed: Undisturbed) -> None:
    async with undisturbed(half_message_s=0.3) as arena, arena.websocket() as peer:
        empty = frame(CONTINUATION) * 1000
        with memory_bounded(2 * MIB):
            await peer.send_raw(frame(TEXT, b"{"))
            await peer.pour(empty, 100_000)  # until it is hung up on
        assert (await peer.receive_error())["code"] == "bad_request"
        await peer.closed_with(1008)


@pytest.mark.parametrize("sent", [1, 2, 5, 6, 10], ids=str)
async def test_a_frame_that_never_ends_is_refused_at_its_deadline(undisturbed: Undisturbed, sent: int) -> None:
    async with undisturbed(half_message_s=0.2) as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | TEXT, REQUEST)[:sent])
        assert (await peer.receive_error())["code"] == "bad_request"
        await peer.closed_with(1008)


async def test_pings_between_its_fragments_give_a_message_no_more_time(undisturbed: Undisturbed) -> None:
    async with undisturbed(half_message_s=0.3) as arena, arena.websocket() as peer:
        await peer.send_raw(frame(TEXT, b"{"))
        async with peer.dripping(frame(FIN | PONG)):
            assert (await peer.receive_error())["code"] == "bad_request"


# What is allowed


async def test_frames_right_behind_the_handshake_are_served(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket(behind=frame(FIN | TEXT, REQUEST) * 3) as peer:
        for _ in range(3):
            assert await peer.receive() == ANSWER


async def test_frames_may_come_byte_by_byte(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket() as peer:
        long = frame(FIN | TEXT, REQUEST.ljust(200))
        for byte in frame(FIN | TEXT, REQUEST) + frame(FIN | PING, b"p") + long:
            await peer.send_raw(bytes((byte,)))
        assert await peer.receive() == ANSWER
        assert await peer.receive_frame() == (PONG, b"p")
        assert await peer.receive() == ANSWER


@pytest.mark.parametrize("payload", [b"", b"p", b"\xff\x00", b"x" * 125], ids=len)
async def test_a_ping_is_answered_with_its_payload(undisturbed: Undisturbed, payload: bytes) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | PING, payload))
        assert await peer.receive_frame() == (PONG, payload)
        await peer.send_raw(frame(FIN | PONG, payload))  # unasked for, which is allowed
        await peer.still_served()


async def test_control_frames_may_come_between_fragments(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket() as peer:
        for number, head in enumerate((TEXT, CONTINUATION, CONTINUATION, FIN | CONTINUATION)):
            await peer.send_raw(frame(head, REQUEST[number * 5 : number * 5 + 5]))
            if not head & FIN:
                await peer.send_raw(frame(FIN | PING, b"%d" % number) + frame(FIN | PONG))
                assert await peer.receive_frame() == (PONG, b"%d" % number)
        assert await peer.receive() == ANSWER


async def test_empty_fragments_are_allowed(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket() as peer:
        await peer.send_raw(
            frame(TEXT) + frame(CONTINUATION) + frame(CONTINUATION, REQUEST) + frame(FIN | CONTINUATION)
        )
        assert await peer.receive() == ANSWER


async def test_an_empty_message_is_not_json(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        for attack in (frame(FIN | TEXT), frame(TEXT) + frame(FIN | CONTINUATION)):
            await peer.send_raw(attack)
            assert (await peer.receive_error())["code"] == "bad_json"
        await peer.still_served()


async def test_requests_before_a_failure_are_answered(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | TEXT, PUBLISH % b"") + frame(FIN | BINARY, b"x") + frame(FIN | TEXT, REQUEST))
        assert await peer.receive() == {"op": "ok", "id": 2, "offset": 1}
        await peer.closed_with(1003)
