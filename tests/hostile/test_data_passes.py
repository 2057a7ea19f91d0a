"""What is unusual in `data` but allowed: it reaches every dialect and the history byte for byte."""

import pytest

from tests.hostile.arena import Undisturbed

UNUSUAL = {
    "a number of 5,000 digits": b"9" * 5000,
    "more than a double holds": b"12345678901234567890123456789.000000000000000000000000001",
    "infinitely large for a double": b"1e999999",
    "a negative zero": b"-0",
    "a negative zero with digits": b"-0.000",
    "an exponent with a plus": b"1E+05",
    "the same name twice": b'{"a":1,"a":2}',
    "an empty name": b'{"":{}}',
    "spaces between tokens": b'[ 1 ,\t2 , { "a" : null } ]',
    "an escaped slash": b'"<\\/script>"',
    "escapes of plain letters": b'"\\u0041\\u00E9\\u00e9"',
    "an escaped pair of surrogates": b'"\\ud83d\\ude00\\uD83D\\uDE00"',
    "an escaped NUL": b'"\\u0000"',
    "escaped line breaks": b'"\\r\\n\\u000a\\u2028"',
    "an escaped escape": b'"\\u001b[2J"',
    "an unescaped DEL": b'"\x7f"',
    "unescaped line separators": '"\u2028\u2029\u0085"'.encode(),
    "emoji and joiners": '"👩‍👩‍👧‍👦 é e\u0301 \ufeff \U0010ffff"'.encode(),
    "null": b"null",
    "an empty string": b'""',
    "an empty object": b"{}",
    "JSON in a string": b'"{\\"op\\":\\"goodbye\\"}"',
}


def publish(data: bytes) -> bytes:
    return b'{"op":"publish","id":1,"channel":"attacked","data":' + data + b"}"


async def test_unusual_data_passes_byte_for_byte_into_every_dialect_and_the_history(
    undisturbed: Undisturbed, dialect: str
) -> None:
    async with (
        undisturbed(log_lines=0) as arena,
        arena.speaking(dialect) as peer,
        arena.speaking("lines") as lines,
        arena.speaking("frames") as frames,
        arena.speaking("websocket") as websocket,
    ):
        readers = (lines, frames, websocket)
        for reader in readers:
            await reader.request("subscribe", channel="attacked")
        for offset, (what, data) in enumerate(UNUSUAL.items(), 1):
            await peer.send_bytes(publish(data))
            assert await peer.receive_bytes() == b'{"op":"ok","id":1,"offset":%d}' % offset, what
            for reader in readers:
                message = await reader.receive_bytes()
                assert message.startswith(b'{"op":"message","channel":"attacked","offset":%d,' % offset), what
                assert message.endswith(b',"data":' + data + b"}"), what
        await peer.send("history", id=2, channel="attacked")
        history = await peer.receive_bytes()
        assert all(b',"data":' + data + b"}" in history for data in UNUSUAL.values())


@pytest.mark.parametrize("binary_dialect", ["frames", "websocket"])
async def test_line_breaks_between_tokens_become_spaces(undisturbed: Undisturbed, binary_dialect: str) -> None:
    async with (
        undisturbed(log_lines=0) as arena,
        arena.speaking(binary_dialect) as peer,
        arena.speaking("lines") as lines,
    ):
        await lines.request("subscribe", channel="attacked")
        await peer.send_bytes(publish(b'{\r\n\t"a": [\n1,\r2\n],\n"b": "\\r\\n"\r\n}').replace(b",", b"\n,\r", 1))
        assert (await peer.receive())["op"] == "ok"
        message = await lines.receive_bytes()
        assert message.endswith(b',"data":{  \t"a": [ 1, 2 ], "b": "\\r\\n"  }}'), message


async def test_a_carriage_return_between_tokens_of_a_line_becomes_a_space(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.speaking("lines") as peer, arena.speaking("lines") as reader:
        await reader.request("subscribe", channel="attacked")
        await peer.send_bytes(publish(b"[1,\r2]"))
        assert (await peer.receive())["op"] == "ok"
        assert (await reader.receive_bytes()).endswith(b',"data":[1, 2]}')


async def test_what_a_person_reads_of_hostile_data_cannot_move_their_cursor(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.speaking("lines") as peer, arena.tcp() as person:
        await person.send_raw(b"/join attacked\n")
        assert b"you are in #attacked" in await person.receive_bytes()
        await peer.request("hello", name="evil\u202e\u200b")
        for offset, data in enumerate(UNUSUAL.values(), 1):
            await peer.send_bytes(publish(data))
            assert (await peer.receive())["op"] == "ok"
            line = (await person.receive_bytes()).decode()
            assert line.startswith(f"#attacked {offset} evil\\u202e\\u200b: "), line
            assert "".join(c for c in line if c not in "\u200c\u200d").isprintable(), line
