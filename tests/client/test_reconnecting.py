"""The client over a network that fails, and a server that is killed: nothing is missed, twice, or lost on the way."""

import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

import trisync
from tests.client.conftest import Run
from tests.client.proxy import FaultProxy, fault_proxy
from tests.harness import PATIENCE_S, ServerProcess
from trisync.client import Client, NotConnected, State, Status, TooLarge
from trisync.client.driver import Signal


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[FaultProxy]:
    """A network between the client and the TCP door."""
    with fault_proxy(server.tcp_port) as proxy:
        yield proxy


@pytest.fixture
def web_proxy(server: ServerProcess) -> Iterator[FaultProxy]:
    """A network between the client and the web door."""
    with fault_proxy(server.web_port) as proxy:
        yield proxy


@asynccontextmanager
async def client_of(proxy: FaultProxy, scheme: str = "tcp") -> AsyncIterator[Client]:
    async with trisync.connect(f"{scheme}://127.0.0.1:{proxy.port}") as client:
        yield client


async def becomes(client: Client, state: State) -> Status:
    """Wait until a client is in a state."""
    changes = client.status_changes()
    with anyio.fail_after(PATIENCE_S):
        while client.status.state is not state:
            await anext(changes)
    return client.status


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
def test_over_connections_that_are_cut_again_and_again_everything_comes_once(
    run: Run, proxy: FaultProxy, web_proxy: FaultProxy, scheme: str, channel: str
) -> None:
    network = proxy if scheme == "tcp" else web_proxy

    async def main() -> None:
        async with (
            client_of(network, scheme) as publisher,
            client_of(network, scheme) as reader,
            reader.subscribe(channel) as messages,
        ):
            receipts = []
            for number in range(600):
                receipts.append(publisher.post(channel, number))
                if number % 100 == 50:
                    assert (await anext(messages)).data == number // 100
                    network.cut()
            assert [await receipt for receipt in receipts] == list(range(1, 601))
            assert [(await anext(messages)).offset for _ in range(594)] == list(range(7, 601))
            page = await reader.history(channel, since=0, limit=1000)
            assert [message.data for message in page.messages] == list(range(600))
        assert network.accepted > 2

    run(main)


def test_what_is_said_while_offline_is_queued_and_stored_once(run: Run, proxy: FaultProxy, channel: str) -> None:
    async def main() -> None:
        async with client_of(proxy) as client, client.state(channel) as doc:
            proxy.refuse()
            status = await becomes(client, State.OFFLINE)
            assert status.retry_s is not None
            with pytest.raises(NotConnected):
                await client.publish(channel, "now or never", ephemeral=True)
            receipts = [client.post(channel, number) for number in range(10)]
            doc["title"] = "offline"
            assert dict(doc) == {"title": "offline"}
            proxy.heal()
            client.nudge()
            assert [await receipt for receipt in receipts] == list(range(1, 11))
            await doc.flush()
            assert dict(doc) == {"title": "offline"}

    run(main)


def test_half_a_close_is_the_end_of_a_connection(run: Run, proxy: FaultProxy, channel: str) -> None:
    async def main() -> None:
        async with client_of(proxy) as client, client.subscribe(channel) as messages:
            proxy.half_close()
            receipt = client.post(channel, "after")
            assert (await anext(messages)).data == "after"
            assert await receipt == 1

    run(main)


def test_a_connection_into_a_black_hole_is_given_up(
    run: Run, proxy: FaultProxy, channel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trisync.client.watchdog.QUIET_S", 0.2)
    monkeypatch.setattr("trisync.client.watchdog.ANSWER_S", 0.2)
    monkeypatch.setattr("trisync.client.driver.ANSWER_S", 0.2)

    async def main() -> None:
        async with client_of(proxy) as client, client.subscribe(channel) as messages:
            proxy.swallow()
            receipts = [client.post(channel, number) for number in range(10)]
            status = await becomes(client, State.OFFLINE)
            assert "the server said nothing" in status.reason
            proxy.heal()
            assert [(await anext(messages)).data for _ in range(10)] == list(range(10))
            assert [await receipt for receipt in receipts] == list(range(1, 11))

    caplog.set_level(logging.DEBUG, "trisync.client")
    run(main)
    story = " | ".join(caplog.messages)
    assert "asking" in story
    assert "10 publishes in doubt" in story
    assert story.count("online with") == 2


def test_a_slow_network_is_no_broken_one(run: Run, proxy: FaultProxy, channel: str) -> None:
    async def main() -> None:
        async with client_of(proxy) as client, client.subscribe(channel) as messages:
            proxy.delay_s = 0.02
            for number in range(5):
                client.post(channel, number)
            assert [(await anext(messages)).data for _ in range(5)] == list(range(5))
        assert proxy.accepted == 1

    run(main)


def test_a_state_is_in_step_again_after_it_was_away(run: Run, proxy: FaultProxy, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with client_of(proxy) as client, client.state(channel) as doc, trisync.connect(tcp_url) as other:
            changes = doc.changes()
            await doc.set("gone", 1)
            await doc.set("kept", 1)
            while doc.confirmed("kept") is None:  # the answer to a write may be here before the write itself
                await anext(changes)
            proxy.refuse()
            await becomes(client, State.OFFLINE)
            changes = doc.changes()
            await other.publish(channel, None, key="gone")
            await other.publish(channel, 2, key="new")
            assert dict(doc) == {"gone": 1, "kept": 1}
            proxy.heal()
            client.nudge()
            told = {(change.key, change.value) for change in (await anext(changes), await anext(changes))}
            assert told == {("gone", None), ("new", 2)}
            assert dict(doc) == {"kept": 1, "new": 2}

    run(main)


def test_a_server_that_stops_says_when_to_come_back(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        server = ServerProcess(tmp_path, "--reconnect-spread-ms", "1")
        try:
            async with trisync.connect(f"tcp://127.0.0.1:{server.tcp_port}") as client:
                await client.publish("lobby", 1)
                await anyio.to_thread.run_sync(server.stop)
                status = await becomes(client, State.OFFLINE)
                assert status.reason
                receipt = client.post("lobby", 2)
                port = server.tcp_port
                server.log.close()
                server = await anyio.to_thread.run_sync(lambda: ServerProcess(tmp_path, tcp_port=port))
                assert await receipt == 2
        finally:
            server.close()
            server.log.close()

    run(main)


def test_a_server_with_a_lower_limit_settles_what_is_in_doubt_and_larger(
    run: Run, tmp_path: Path, channel: str
) -> None:
    async def main() -> None:
        server = ServerProcess(tmp_path)
        tcp, producer, large = server.tcp_port, "p" * 16, "x" * 100_000
        url = f"tcp://127.0.0.1:{tcp}"
        try:
            with fault_proxy(tcp) as network:
                async with trisync.connect(f"tcp://127.0.0.1:{network.port}", producer=producer) as client:
                    network.swallow()
                    receipts = [client.post(channel, large), client.post(channel, large), client.post(channel, "y")]
                    async with trisync.connect(url, producer=producer) as other:
                        await other.publish(channel, large)  # as if the first had arrived, and its answer had not
                    await anyio.to_thread.run_sync(server.stop, signal.SIGKILL)
                    server.log.close()
                    lower = ("--message-bytes-max", "2000")
                    server = await anyio.to_thread.run_sync(lambda: ServerProcess(tmp_path, *lower, tcp_port=tcp))
                    network.heal()
                    network.cut()
                    assert await receipts[0] == 1
                    with pytest.raises(TooLarge):
                        await receipts[1]
                    assert await receipts[2] == 2
        finally:
            server.close()
            server.log.close()

    run(main)


def test_clients_agree_on_order_and_content_while_the_server_is_killed_again_and_again(
    run: Run, tmp_path: Path
) -> None:
    """Three programs publish and read through both doors; the server is killed three times meanwhile."""

    async def main() -> None:
        servers = [ServerProcess(tmp_path)]
        tcp, web = servers[0].tcp_port, servers[0].web_port
        seen: dict[str, list[tuple[int | None, str | None, int]]] = {"a": [], "b": [], "c": []}
        progress = Signal()

        async def write(client: Client) -> None:
            for start in range(0, 150, 10):
                for receipt in [client.post("lobby", number) for number in range(start, start + 10)]:
                    await receipt

        async def read(client: Client, name: str) -> None:
            async with client.subscribe("lobby", since=0) as messages:
                while len(seen[name]) < 450:
                    message = await anext(messages)
                    seen[name].append((message.offset, message.sender, message.data))
                    progress.fire()

        async def kill_and_restart(*clients: Client) -> None:
            for kill in range(3):
                while len(seen["a"]) < 20 + 130 * kill:
                    await progress.wait()
                await anyio.to_thread.run_sync(servers[-1].stop, signal.SIGKILL)
                servers.append(
                    await anyio.to_thread.run_sync(lambda: ServerProcess(tmp_path, tcp_port=tcp, web_port=web))
                )
                for client in clients:
                    client.nudge()  # their pauses have become long by now

        try:
            async with (
                trisync.connect(f"tcp://127.0.0.1:{tcp}", name="a") as a,
                trisync.connect(f"tcp://127.0.0.1:{tcp}", name="b") as b,
                trisync.connect(f"ws://127.0.0.1:{web}", name="c") as c,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(kill_and_restart, a, b, c)
                for name, client in (("a", a), ("b", b), ("c", c)):
                    tasks.start_soon(write, client)
                    tasks.start_soon(read, client, name)
        finally:
            for server in servers:
                server.close()
                server.log.close()
        assert seen["a"] == seen["b"] == seen["c"]
        assert [offset for offset, _, _ in seen["a"]] == list(range(1, 451))
        for name in seen:
            assert [data for _, sender, data in seen["a"] if sender == name] == list(range(150))

    run(main)
