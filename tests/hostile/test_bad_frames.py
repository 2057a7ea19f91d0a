"""The frames dialect: lengths that lie, frames that do not end, and what arrives in pieces."""

import pytest

from tests.harness import PATIENCE_S
from tests.hostile.arena import LOWEST_LIMIT, MIB, Undisturbed, memory_bounded

PING = b'{"op":"ping","id":1}'


def framed(payload: bytes) -> bytes:
    return (len(payload) + 4).to_bytes(4, "big") + payload


@pytest.mark.parametrize("length", range(5))
@pytest.mark.parametrize("behind", ["at first", "behind a request"])
async def test_a_length_below_five_is_refused_and_closes(undisturbed: Undisturbed, length: int, behind: str) -> None:
    async with undisturbed() as arena, arena.frames() as peer:
        if behind == "behind a request":
            await peer.still_served()
        await peer.send_raw(length.to_bytes(4, "big") + PING)
        await peer.left_with("bad_request")


@pytest.mark.parametrize("length", [MIB + 5, 0x00FFFFFF, 0x01000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], ids=hex)
async def test_a_length_over_the_limit_is_refused_before_anything_is_read_or_allocated(
    undisturbed: Undisturbed, length: int
) -> None:
    async with undisturbed() as arena, arena.frames() as peer:
        await peer.still_served()
        with memory_bounded(MIB // 2):
            await peer.send_raw(length.to_bytes(4, "big"))
            error = await peer.receive_error()
        assert (error["code"], error["limit"], error["value"]) == ("too_large", "message_bytes_max", MIB)
        assert await peer.receive_rest() == b""


async def test_the_first_length_of_a_connection_may_be_refused_too(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.frames() as peer:
        await peer.send_raw((MIB + 5).to_bytes(4, "big"))
        await peer.left_with("too_large")


async def test_requests_before_a_wrong_length_are_answered(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.frames() as peer:
        publish = framed(b'{"op":"publish","id":2,"channel":"attacked","data":1}')
        await peer.send_raw(framed(PING) + publish + bytes(4) + framed(PING))
        answers = [await peer.receive() for _ in range(3)]
        assert sorted(answer["op"] for answer in answers) == ["error", "ok", "pong"]
        assert await peer.receive_rest() == b""


async def test_a_megabyte_is_accepted_and_one_byte_more_is_not(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.frames() as peer:
        request = b'{"op":"publish","id":7,"channel":"attacked","data":"%b"}'
        filling = b"x" * (MIB - len(request) + 2)
        await peer.send_bytes(request % filling)
        assert await peer.receive() == {"op": "ok", "id": 7, "offset": 1}
        await peer.send_raw((MIB + 5).to_bytes(4, "big") + request % (filling + b"x"))
        await peer.left_with("too_large")


@pytest.mark.parametrize("sent", [1, 3, 4, 5, 100])
async def test_a_frame_that_never_ends_is_refused_at_its_deadline(undisturbed: Undisturbed, sent: int) -> None:
    async with undisturbed(half_message_s=0.2) as arena, arena.frames() as peer:
        await peer.send_raw((200).to_bytes(4, "big").ljust(100, b" ")[:sent])
        await peer.left_with("bad_request")


async def test_a_frame_that_comes_drop_by_drop_has_no_more_time_than_one_that_stops(undisturbed: Undisturbed) -> None:
    async with undisturbed(half_message_s=0.3) as arena, arena.frames() as peer:
        await peer.still_served()
        await peer.send_raw((MIB).to_bytes(4, "big"))
        async with peer.dripping(b" "):
            assert (await peer.receive_error())["code"] == "bad_request"


async def test_whole_frames_give_the_next_one_its_own_time(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0, half_message_s=PATIENCE_S) as arena, arena.frames() as peer:
        stream = framed(PING) * 20
        for at in range(0, len(stream), 7):  # never at the end of a frame, save the last
            await peer.send_raw(stream[at : at + 7])
        for _ in range(20):
            assert await peer.receive() == {"op": "pong", "id": 1}


async def test_frames_may_come_byte_by_byte(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.frames() as peer:
        for byte in framed(PING) + framed(b'{"op":"publish","id":2,"channel":"attacked","data":"\xc3\xa4"}'):
            await peer.send_raw(bytes((byte,)))
        assert await peer.receive() == {"op": "pong", "id": 1}
        assert await peer.receive() == {"op": "ok", "id": 2, "offset": 1}


async def test_a_client_that_goes_on_sending_into_a_refused_frame_costs_no_memory(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.frames() as peer:
        with memory_bounded(4 * MIB):
            await peer.send_raw((0x00FFFFFF).to_bytes(4, "big"))
            await peer.pour(b"x" * 65536, 500)
        assert (await peer.receive_error())["code"] == "too_large"


async def test_the_limit_that_is_set_is_the_one_that_counts(undisturbed: Undisturbed) -> None:
    async with undisturbed(message_bytes_max=LOWEST_LIMIT) as arena, arena.frames() as peer:
        await peer.send_bytes(PING.ljust(LOWEST_LIMIT))
        assert (await peer.receive())["op"] == "pong"
        await peer.send_bytes(PING.ljust(LOWEST_LIMIT + 1))
        await peer.left_with("too_large")


async def test_a_client_that_hangs_up_within_a_frame_has_asked_for_nothing(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena:
        async with arena.frames() as peer:
            await peer.send_raw(framed(b'{"op":"publish","channel":"attacked","data":1}')[:-1])
        async with arena.speaking("lines") as other:
            assert (await other.request("history", channel="attacked"))["offset"] == 0


async def test_the_other_dialects_do_not_begin_with_frames(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.frames() as peer:
        await peer.still_served()
        await peer.send_raw(PING + b"\n")  # `{"op` is a length of 2 GB
        await peer.left_with("too_large")
