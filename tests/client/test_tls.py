"""The client over TLS: through a relay that has a certificate, to a server that has none."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
import trustme
from anyio.streams.tls import TLSListener

import trisync
from tests.client.conftest import Run
from tests.harness import ServerProcess
from trisync.client import NotConnected


@asynccontextmanager
async def tls_relay(server_port: int, authority: trustme.CA) -> AsyncIterator[int]:
    """A port where TLS is spoken, and behind it a server's port where it is not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def pass_on(source: anyio.abc.ByteStream, target: anyio.abc.ByteStream) -> None:
        try:
            while True:
                await target.send(await source.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await anyio.aclose_forcefully(target)

    async def relay(client: anyio.abc.ByteStream) -> None:
        async with client, await anyio.connect_tcp("127.0.0.1", server_port) as server:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pass_on, client, server)
                tasks.start_soon(pass_on, server, client)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as plain:
        listener = TLSListener(plain, context, standard_compatible=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, relay)
            yield plain.extra(anyio.abc.SocketAttribute.local_port)
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
