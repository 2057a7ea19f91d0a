"""The client over TLS: through a relay that has a certificate, to a server that has none."""

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
import trustme
from anyio.streams.tls import TLSListener

import trisync
from tests.client.conftest import Run
from tests.client.proxy import RESET
from tests.harness import ServerProcess
from trisync.client import NotConnected


async def pass_on(source: anyio.abc.ByteStream, target: anyio.abc.ByteStream) -> None:
    try:
        while True:
            await target.send(await source.receive())
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        await anyio.aclose_forcefully(target)


async def relay(client: anyio.abc.ByteStream, port: int) -> None:
    async with client, await anyio.connect_tcp("127.0.0.1", port) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pass_on, client, server)
            tasks.start_soon(pass_on, server, client)


@asynccontextmanager
async def tls_relay(server_port: int, authority: trustme.CA) -> AsyncIterator[int]:
    """A port where TLS is spoken, and behind it a server's port where it is not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as plain:
        listener = TLSListener(plain, context, standard_compatible=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, lambda client: relay(client, server_port))
            yield plain.extra(anyio.abc.SocketAttribute.local_port)
            tasks.cancel_scope.cancel()


Fault = Callable[[anyio.abc.ByteStream], Awaitable[None]]


async def close(client: anyio.abc.ByteStream) -> None:
    await client.receive()


async def close_half_way(client: anyio.abc.ByteStream) -> None:
    await client.receive()
    await client.send(b"\x16\x03\x03\x00\x50half")


async def reset(client: anyio.abc.ByteStream) -> None:
    await client.receive(1)
    raw = client.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


async def answer_something_else(client: anyio.abc.ByteStream) -> None:
    await client.receive()
    await client.send(b"garbage\r\n")


@asynccontextmanager
async def failing(fault: Fault, port: int) -> AsyncIterator[int]:
    """A port whose first connection has a fault; all others come to the port behind it."""
    faults = [fault]

    async def serve(client: anyio.abc.ByteStream) -> None:
        if faults:
            async with client:
                await faults.pop()(client)
        else:
            await relay(client, port)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("scheme", ["tcps", "wss"])
def test_it_speaks_tls_to_whom_it_trusts_and_to_nobody_else(
    run: Run, server: ServerProcess, scheme: str, channel: str
) -> None:
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def main() -> None:
        port = server.tcp_port if scheme == "tcps" else server.web_port
        async with tls_relay(port, authority) as tls_port:
            url = f"{scheme}://localhost:{tls_port}"
            async with trisync.connect(url, tls=trusting) as client, client.subscribe(channel) as messages:
                await client.publish(channel, "x" * 100_000)
                assert len((await anext(messages)).data) == 100_000
            with pytest.raises(NotConnected, match="certificate verify failed"):
                async with trisync.connect(url, wait_s=0):
                    pass

    run(main)


@pytest.mark.parametrize("fault", [close, close_half_way, reset, answer_something_else])
@pytest.mark.parametrize("scheme", ["tcps", "wss"])
def test_a_tls_handshake_that_fails_is_an_attempt_that_failed(
    run: Run, server: ServerProcess, scheme: str, fault: Fault, channel: str
) -> None:
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def main() -> None:
        server_port = server.tcp_port if scheme == "tcps" else server.web_port
        async with (
            tls_relay(server_port, authority) as tls_port,
            failing(fault, tls_port) as port,
            trisync.connect(f"{scheme}://localhost:{port}", tls=trusting, wait_s=None) as client,
        ):
            assert await client.publish(channel, "after") == 1

    run(main)
