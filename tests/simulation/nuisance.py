"""Peers that are no clients: they come and say nothing, half of something, or nonsense, and leave as they please."""

import random

import trio

from tests.simulation.network import Network

_SAYINGS = (
    b"",
    b"{",
    b'{"op":"publish","channel":"lobby","data":',
    b'{"op":"hello"}\nnonsense\n{"op":"publish","channel":"lobby"}\n[[[[\n',
    b"\x00\x00\x00\x02",
    b"\x00\x00\x01\x00{",
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
    b"\xff\xfb\x01\xff",
    b"/who\r\n/nonsense\r\n",
)


async def pester(network: Network, source: random.Random) -> None:
    """Come, say something, leave; again and again, until cancelled."""
    while True:
        await trio.sleep(source.uniform(0, 2))
        try:
            stream = await network.connect(source.choice(("tcp", "web")))
        except OSError:
            continue
        try:
            saying = source.choice(_SAYINGS)
            with trio.move_on_after(source.uniform(0, 15)):
                await stream.send_all(saying[: source.randint(0, len(saying))] if source.random() < 0.3 else saying)
                while await stream.receive_some():
                    pass
        except trio.BrokenResourceError:
            pass
        finally:
            if source.random() < 0.3:
                stream.link.lose()
            stream.hang_up()
