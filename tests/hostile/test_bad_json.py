"""What is not JSON, or not as strict as the wire is: refused with `bad_json`, and the conversation goes on."""

import json

import pytest

from tests.hostile.arena import MIB, Undisturbed
from tests.hostile.raw_peers import NOT_UTF8

BAD = {
    "nothing of JSON": b'hello"',
    "half an object": b'{"op":"ping"',
    "names without quotes": b'{op:"ping"}',
    "apostrophes": b"{'op':'ping'}",
    "a comment": b'{"op":"ping"/*,"id":1*/}',
    "a trailing comma": b'{"op":"ping",}',
    "two objects": b'{"op":"ping"}{"op":"ping"}',
    "two objects with a space": b'{"op":"ping"} {"op":"ping"}',
    "a NUL behind": b'{"op":"ping"}\x00',
    "a form feed between tokens": b'{"op":\x0c"ping"}',
    "a no-break space between tokens": b'{"op":\xc2\xa0"ping"}',
    "a byte order mark": b'\xef\xbb\xbf{"op":"ping"}',
    "a lone surrogate in an id": b'{"op":"ping","id":"\\ud83d"}',
    "a lone surrogate in a name": b'{"op":"hello","name":"a\\udc00b"}',
    "a lone surrogate in a field unknown": b'{"op":"ping","x":"\\ud83d"}',
    "a control character in a string": b'{"op":"ping","x":"\x01"}',
    "NaN in a field unknown": b'{"op":"ping","x":NaN}',
    "only spaces": b"  ",
}

BAD_DATA = {
    "nothing": b"",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a word": b"undefined",
    "half a word": b"tru",
    "apostrophes": b"'a'",
    "a leading zero": b"01",
    "a leading plus": b"+1",
    "a point without digits": b"1.",
    "a point without a whole": b".5",
    "an exponent without digits": b"1e",
    "a minus": b"-",
    "hexadecimal": b"0x10",
    "a trailing comma": b"[1,]",
    "a missing comma": b"[1 2]",
    "a missing colon": b'{"a" 1}',
    "a number as a name": b"{1:2}",
    "the wrong bracket": b"[1}",
    "an unclosed bracket": b"[[1]",
    "an unclosed string": b'"abc',
    "two values": b"1 2",
    "a lone high surrogate": b'"\\ud83d"',
    "a high surrogate before a letter": b'"\\ud83da"',
    "two high surrogates": b'"\\ud83d\\ud83d"',
    "a lone low surrogate": b'"\\ude00"',
    "surrogates the wrong way round": b'"\\ude00\\ud83d"',
    "a lone surrogate in a name": b'{"\\ud83d":1}',
    "a lone surrogate deep inside": b'[[{"a":["\\ud83d"]}]]',
    "an escape that is none": b'"\\x41"',
    "half an escape": b'"\\u12"',
    "an escape of no digits": b'"\\u12zz"',
    "a tab in a string": b'"a\tb"',
    "an escape character in a string": b'"\x1b[2J"',
    "a comment": b"1//",
}


def publish(data: bytes) -> bytes:
    return b'{"op":"publish","id":7,"channel":"attacked","data":' + data + b"}"


def nested(levels: int) -> bytes:
    """A publish whose nesting is so many levels deep, the request itself being the first."""
    return publish(b"[" * (levels - 1) + b"]" * (levels - 1))


async def test_what_is_not_json_is_refused_and_the_conversation_goes_on(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for what, payload in BAD.items():
            error = await peer.refused(payload)
            assert (error["code"], error["retry"]) == ("bad_json", False), what
            await peer.still_served()


async def test_data_that_is_not_json_is_refused_and_nothing_is_stored(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for what, data in BAD_DATA.items():
            error = await peer.refused(publish(data))
            assert (error["code"], error["retry"]) == ("bad_json", False), what
        assert (await peer.request("history", channel="attacked"))["messages"] == []
        await peer.still_served()


async def test_a_bad_request_that_is_also_bad_json_is_refused(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for payload in (
            b'{"op":"nope"} {"op":"ping"}',
            b'{"op":"ping","id":1.5} x',
            b'{"op":"nope","x":',
            b'{"op":5,"x":nul}',
            b'{"op":"subscribe","channel":5,"x":"\\ud83d"}',
            b'{"op":"publish","channel":5,"data":[1,]}',
            b"[] []",
            b"5 5",
        ):
            assert (await peer.refused(payload))["code"] in ("bad_json", "bad_request"), payload
            await peer.still_served()


async def test_invalid_utf8_is_refused_inside_data_and_elsewhere(undisturbed: Undisturbed, tcp_dialect: str) -> None:
    async with undisturbed() as arena, arena.speaking(tcp_dialect) as peer:
        for what, text in NOT_UTF8.items():
            for payload in (
                publish(b'"' + text + b'"'),
                publish(b'{"' + text + b'":1}'),
                publish(b"[" + text + b"]"),
                b'{"op":"hello","name":"' + text + b'"}',
                b'{"op":"ping","x":"' + text + b'"}',
                b'{"op":"ping"}' + text,
            ):
                error = await peer.refused(payload)
                assert (error["code"], error["retry"]) == ("bad_json", False), (what, payload)
        assert (await peer.request("history", channel="attacked"))["messages"] == []


async def test_sixty_four_levels_are_accepted_and_delivered_and_sixty_five_are_refused(
    undisturbed: Undisturbed, dialect: str
) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        await peer.request("subscribe", channel="attacked")
        await peer.send_bytes(nested(64))
        assert await peer.receive() == {"op": "ok", "id": 7, "offset": 1}
        assert json.dumps((await peer.receive())["data"]) == "[" * 63 + "]" * 63
        assert (await peer.refused(nested(65)))["code"] == "bad_json"
        assert (await peer.refused(publish(b'{"a":' * 64 + b"1" + b"}" * 64)))["code"] == "bad_json"
        assert (await peer.refused(b'{"op":"ping","x":' + b"[" * 64 + b"]" * 64 + b"}"))["code"] == "bad_json"
        await peer.still_served()


async def test_brackets_in_strings_are_not_nesting(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed(log_lines=0) as arena, arena.speaking(dialect) as peer:
        for text in (b"[" * 200, b'\\"' + b"[" * 200, b"\\\\\\" + b'"' + b"{" * 200, b"]" * 9 + b"[" * 200):
            await peer.send_bytes(publish(b'["' + text + b'",{"' + text + b'":[]}]'))
            assert (await peer.receive())["op"] == "ok"
        await peer.send_bytes(publish(b"[" + b"[],{}," * 500 + b"[]]"))
        assert (await peer.receive())["op"] == "ok"


@pytest.mark.parametrize("levels", [100_000, 400_000])
async def test_endless_nesting_is_refused(undisturbed: Undisturbed, dialect: str, levels: int) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for payload in (
            nested(levels),
            b'{"op":"ping","x":' + b"[" * levels + b"]" * levels + b"}",
            (b'{"a":' * levels)[: MIB - 10],
        ):
            assert (await peer.refused(payload))["code"] == "bad_json"
            await peer.still_served()
        # Of this, the first bracket already tells that it is no object.
        assert (await peer.refused(b"[" * levels))["code"] in ("bad_json", "bad_request")
        await peer.still_served()


@pytest.mark.parametrize("text", [b'\\"', b'"', b"\\\\", b"\\", b'[""', b'"["'], ids=str)
async def test_a_megabyte_of_quotes_and_escapes_holds_nobody_up(
    undisturbed: Undisturbed, dialect: str, text: bytes
) -> None:
    # Looking for the end of a string again from each quote costs the square: hours for this.
    start = b'{"op":"ping","x":[' + b"[]," * 70 + b'"'
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        assert (await peer.refused(start + text * ((MIB - len(start)) // len(text))))["code"] == "bad_json"
        await peer.still_served()
