"""The simulated network: it does to bytes what networks do, and nothing else."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.simulation.determinism import Trace, run_seeded
from tests.simulation.links import CALM, KEEPALIVE_S, SimStream, Weather
from tests.simulation.network import Network

ROUGH = Weather(latency_s_max=0.3, jitter_s_max=0.2, window_bytes=(300,), torn=1.0)


def in_network(weather: Weather, seed: int, scene: Callable[[SimStream, SimStream], Awaitable[None]]) -> None:
    """Run a scene with a client's stream and the server's."""

    async def main() -> None:
        network = Network(random.Random(seed), Trace(), weather)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.run)
            listener = network.listen("tcp")
            client = await network.connect("tcp")
            server = await listener.accept()
            assert isinstance(server, SimStream)
            await scene(client, server)
            nursery.cancel_scope.cancel()

    run_seeded(seed, main)


async def read_all(stream: SimStream) -> tuple[bytes, bool]:
    """What comes until the end, and whether that was a reset."""
    data = b""
    try:
        while chunk := await stream.receive_some():
            data += chunk
    except trio.BrokenResourceError:
        return data, True
    return data, False


SENT = bytes(range(256)) * 20


@pytest.mark.parametrize("seed", range(20))
def test_in_any_weather_bytes_arrive_whole_and_in_order(seed: int) -> None:
    async def scene(client: SimStream, server: SimStream) -> None:
        async with trio.open_nursery() as nursery:

            async def speak() -> None:
                await client.send_all(SENT)
                await client.send_eof()

            nursery.start_soon(speak)
            assert await read_all(server) == (SENT, False)

    in_network(ROUGH, seed, scene)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_cut_arrives_up_to_some_point_and_then_is_a_reset(seed: int) -> None:
    async def scene(client: SimStream, server: SimStream) -> None:
        sent = client.try_send(SENT)
        await trio.sleep(0.1)
        client.link.cut()
        data, reset = await read_all(server)
        assert SENT[:sent].startswith(data)
        assert reset
        with pytest.raises(BrokenPipeError):
            client.try_send(b"more")

    in_network(ROUGH, seed, scene)


def test_a_window_bounds_what_is_sent_and_not_read() -> None:
    async def scene(client: SimStream, server: SimStream) -> None:
        assert client.try_send(SENT) == 300
        with pytest.raises(BlockingIOError):
            client.try_send(SENT)
        await trio.sleep(1)
        taken = len(await server.receive_some(100))
        assert client.try_send(SENT) <= taken

    in_network(ROUGH._replace(torn=0.0), 1, scene)


def test_a_lost_connection_is_silent_until_it_is_probed() -> None:
    async def scene(client: SimStream, server: SimStream) -> None:
        client.link.lose()
        began = trio.current_time()
        assert await read_all(client) == (b"", True)
        assert trio.current_time() - began == pytest.approx(KEEPALIVE_S)

    in_network(CALM, 1, scene)


def test_a_peer_that_acknowledges_nothing_is_told_from_one_that_reads_nothing() -> None:
    async def scene(client: SimStream, server: SimStream) -> None:
        server.try_send(SENT)
        await trio.sleep(60)
        assert not server.peer_is_lost(30)
        client.link.lose()
        server.try_send(b"more")
        await trio.sleep(60)
        assert server.peer_is_lost(30)

    in_network(CALM, 1, scene)


def test_closing_with_bytes_unread_resets_and_otherwise_ends() -> None:
    async def scene(client: SimStream, server: SimStream) -> None:
        client.try_send(b"unread")
        await trio.sleep(1)
        server.hang_up()
        assert (await read_all(client))[1]

    async def other_scene(client: SimStream, server: SimStream) -> None:
        server.try_send(b"last words")
        server.hang_up()
        assert await read_all(client) == (b"last words", False)

    in_network(CALM, 1, scene)
    in_network(CALM, 1, other_scene)


def test_nobody_listening_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await Network(random.Random(1), Trace(), CALM).connect("tcp")

    run_seeded(1, main)
