"""What the client's tests share: a server in a process of its own, and a way to run programs on either event loop."""

from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest

from tests.harness import PATIENCE_S, ServerProcess, server_process

NOBODY = "tcp://127.0.0.1:9"
"""The discard port, where nobody listens."""

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for all the tests that leave it alone; each has channels of its own."""
    with server_process(tmp_path_factory.mktemp("client")) as server:
        yield server


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs an async function under asyncio, and in another test under Trio. It must end in time."""

    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def in_time() -> None:
            with anyio.fail_after(3 * PATIENCE_S):
                await main()

        anyio.run(in_time, backend=request.param)

    return run


@pytest.fixture(params=["tcp", "ws"])
def url(request: pytest.FixtureRequest, server: ServerProcess) -> str:
    """The address of one of the server's doors."""
    port = server.tcp_port if request.param == "tcp" else server.web_port
    return f"{request.param}://127.0.0.1:{port}"


@pytest.fixture
def tcp_url(server: ServerProcess) -> str:
    """The address of the server's TCP door."""
    return f"tcp://127.0.0.1:{server.tcp_port}"


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A channel that no other test uses."""
    return "".join(character if character.isalnum() else "-" for character in request.node.name)
