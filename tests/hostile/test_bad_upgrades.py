"""Openings of a WebSocket that are broken, and those that only look unusual."""

import pytest

from tests.hostile.arena import Undisturbed
from tests.hostile.raw_peers import ACCEPTANCE, UPGRADE

BROKEN_UPGRADES: dict[str, tuple[int, bytes, bytes]] = {
    "no key": (400, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""),
    "an empty key": (400, b"dGhlIHNhbXBsZSBub25jZQ==", b""),
    "a key of 15 bytes": (400, b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25j"),
    "a key that is no base64": (400, b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZ===="),
    "a key of other letters": (400, b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25j!Q=="),
    "two keys": (
        400,
        b"Sec-WebSocket-Version",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version",
    ),
    "no version": (426, b"Sec-WebSocket-Version: 13\r\n", b""),
    "an old version": (426, b"Version: 13", b"Version: 8"),
    "a version of the future": (426, b"Version: 13", b"Version: 14"),
    "a version that is no number": (426, b"Version: 13", b"Version: x13"),
    "another protocol": (400, b"Upgrade: websocket", b"Upgrade: h2c"),
    "no protocol": (400, b"Upgrade: websocket\r\n", b""),
    "no Connection header": (400, b"Connection: Upgrade\r\n", b""),
    "another Connection header": (400, b"Connection: Upgrade", b"Connection: keep-alive"),
    "another method": (400, b"GET / ", b"POST / "),
    "HTTP/1.0": (400, b"HTTP/1.1", b"HTTP/1.0"),
    "no host": (400, b"Host: localhost\r\n", b""),
    "a broken host": (400, b"Host: localhost", b"Host: local host"),
    "two hosts": (400, b"Host: localhost", b"Host: localhost\r\nHost: localhost"),
}


@pytest.mark.parametrize(("status", "old", "new"), BROKEN_UPGRADES.values(), ids=BROKEN_UPGRADES)
async def test_a_broken_upgrade_gets_400_or_426(undisturbed: Undisturbed, status: int, old: bytes, new: bytes) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        broken = UPGRADE.replace(old, new)
        assert broken != UPGRADE
        await peer.send_raw(broken)
        headers = await peer.refused_with(status)
        assert headers.get("sec-websocket-version") == ("13" if status == 426 else None)


async def test_upgrades_are_taken_as_the_rfc_allows_them_to_be_written(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena:
        for old, new in (
            (b"GET /", b"GET /any/path?and=query"),
            (b"Upgrade: websocket", b"uPGRADE:   WebSocket"),
            (b"Connection: Upgrade", b"Connection: keep-alive, UPGRADE"),
            (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: x\r\n\r\n"),
        ):
            async with arena.web() as peer:
                await peer.send_raw(UPGRADE.replace(old, new))
                response = await peer.get_response()
                assert (response.status, response.headers["sec-websocket-accept"]) == (101, ACCEPTANCE.decode())
                assert "sec-websocket-extensions" not in response.headers
                assert "sec-websocket-protocol" not in response.headers


@pytest.mark.parametrize("offered", [b"h2c", b"TLS/1.2"])
async def test_an_offer_of_another_protocol_is_ignored(undisturbed: Undisturbed, offered: bytes) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        for target in (b"/", b"/channels", b"/health"):
            head = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
            await peer.send_raw(head % (target, offered))
            assert (await peer.get_response()).status == 200
