"""The client as a package: its documentation runs, and neither it nor the server pays for the other."""

import ast
import copy
import doctest
import pickle
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import trisync
from tests.harness import ServerProcess
from trisync import client
from trisync.client import aio, sync

EXAMPLES = [
    test
    for module in (aio, sync)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if test.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_the_examples_in_docstrings_run(example: doctest.DocTest, server: ServerProcess) -> None:
    def run(main: Callable[[], Awaitable[None]]) -> None:
        anyio.run(main, backend="asyncio")

    example.globs = {**example.globs, "URL": f"tcp://127.0.0.1:{server.tcp_port}", "run": run, **vars(client)}
    results = doctest.DocTestRunner().run(example)
    assert results.attempted
    assert not results.failed


def test_all_that_users_call_has_an_example() -> None:
    shown = " ".join(example.docstring or "" for example in EXAMPLES)
    for name in ("connect", "publish", "post", "subscribe", "history", "state", "presence", "connect_sync"):
        assert f"{name}(" in shown, name


def loaded_by(program: str) -> set[str]:
    """The modules that a program has loaded at its end."""
    said = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(said.stdout.split())


def test_a_server_does_not_load_the_client() -> None:
    loaded = loaded_by("import trisync.cli.serve")
    assert "trisync.server" in loaded
    assert not {name for name in loaded if name.startswith(("trisync.client", "anyio", "asyncio"))}


def test_a_client_does_not_load_the_server_nor_an_event_loop() -> None:
    loaded = loaded_by("from trisync import connect, connect_sync")
    assert "trisync.client" in loaded
    assert not loaded & {"trisync.server", "trisync.core.broker", "trisync.storage.log", "trio", "asyncio", "sqlite3"}


def test_a_command_that_talks_to_a_server_does_not_load_the_server() -> None:
    loaded = loaded_by(
        "from trisync.cli import main; main(['publish', '--help'], prog_name='trisync', standalone_mode=False)"
    )
    assert "trisync.cli.client" in loaded
    assert not loaded & {"trisync.server", "trisync.core.broker", "trisync.storage.log", "rich", "sqlite3"}


def test_what_a_client_gives_and_raises_has_its_names_before_there_is_one() -> None:
    """In annotations, say."""
    assert "trisync.client.errors" in loaded_by("import trisync; trisync.client.Gap")


def test_what_type_checkers_are_told_is_what_there_is() -> None:
    stub = Path(trisync.__file__).with_suffix(".pyi")
    told = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(told) == set(trisync.__all__)
    for name in trisync.__all__:
        found: Any = getattr(trisync, name)
        assert name in ("__version__", "client") or found.__module__.startswith("trisync.")
    with pytest.raises(AttributeError):
        trisync.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_client_package_exports_what_it_says() -> None:
    for name in client.__all__:
        assert hasattr(client, name), name


@pytest.mark.parametrize(
    "error",
    [
        client.Gap("lobby", "trimmed", 1, 3),
        client.Unsettled(2),
        client.Closed("the client is closed"),
        client.Conflict("conflict", "the key's newest offset is 1", False, {"offset": 1, "data": "red"}),
        client.BadRequest("bad_request", "expect and merge need a key"),
    ],
)
def test_errors_come_back_from_other_processes_as_they_are(error: client.ClientError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
