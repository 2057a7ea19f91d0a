"""The server inside a program: what that publishes and reads itself, and trisync serve --app."""

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.embedded import a_server
from tests.harness import PATIENCE_S, Json, LinesPeer, server_process, serving, settings_for
from trisync import Entry, PublishRequest, Server, Settings, WireError
from trisync.storage.log import LogUnavailable
from trisync.storage.sqlite_log import SqliteLog

# Its life


class CancelAt(trio.abc.Instrument):
    """Cancels a scope after so many steps of all tasks."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def test_a_server_that_is_cancelled_at_whatever_step_of_its_start_leaves_no_door_open(tmp_path: Path) -> None:
    step, started = 0, False
    while not started:
        step += 1
        with warnings.catch_warnings(record=True) as unclosed, trio.CancelScope() as scope:
            warnings.simplefilter("always", ResourceWarning)
            instrument = CancelAt(scope, step)
            trio.lowlevel.add_instrument(instrument)
            async with trio.open_nursery() as nursery:
                await nursery.start(a_server(tmp_path).serve)
                started = not scope.cancel_called
                scope.cancel()
        trio.lowlevel.remove_instrument(instrument)
        assert [str(warning.message) for warning in unclosed] == []


# What the program says and reads itself


async def test_a_program_publishes_to_everybody_and_its_own_hooks_are_not_asked(tmp_path: Path) -> None:
    server = a_server(tmp_path)

    @server.on_publish
    async def refuse(publish: PublishRequest) -> None:
        raise AssertionError("not asked")

    async with serving(server) as running, running.lines() as lines, running.websocket() as websocket:
        for peer in (lines, websocket):
            await peer.request("subscribe", channel="news")
        assert await server.publish("news", {"n": 1.5}, name="the editor") == 1
        assert await server.publish("news", "soon gone", ephemeral=True) == 0
        for peer in (lines, websocket):
            first, second = await peer.receive_messages(2)
            assert (first["offset"], first["from"], first["data"]) == (1, "the editor", {"n": 1.5})
            assert ("offset" in second, "from" in second, second["data"]) == (False, False, "soon gone")


async def test_a_hook_may_publish_and_read(tmp_path: Path) -> None:
    server = a_server(tmp_path)

    @server.on_publish("questions")
    async def answer(publish: PublishRequest) -> None:
        seen = len(await server.history("questions"))
        await server.publish("answers", f"{publish.data} was question {seen + 1}")

    async with serving(server) as running, running.lines() as peer:
        await peer.request("subscribe", channel="answers")
        for number in (1, 2):
            await peer.send("publish", id=1, channel="questions", data="why?")
            told = [await peer.receive(), await peer.receive()]
            (message,) = [message for message in told if message["op"] == "message"]
            assert message["data"] == f"why? was question {number}"


async def test_a_program_reads_and_writes_a_state(tmp_path: Path) -> None:
    server = a_server(tmp_path, message_bytes_max=2000)
    async with serving(server):
        assert await server.state("doc") == {}
        for number in range(100):  # more than fit into one page
            await server.publish("doc", "x" * 100, key=f"k{number:03}")
        assert list(await server.state("doc")) == [f"k{number:03}" for number in range(100)]
        assert await server.publish("doc", {"a": 1, "b": 2}, key="k000", expect=1) == 101
        assert await server.publish("doc", {"b": None}, key="k000", merge=True) == 102
        assert await server.word("doc", "k000") == Entry(102, {"a": 1})
        with pytest.raises(WireError) as conflict:
            await server.publish("doc", 0, key="k000", expect=1)
        assert conflict.value.code == "conflict"
        assert str(conflict.value) == "the key's newest offset is 102 (conflict)"
        assert conflict.value.details == {"offset": 102, "data": {"a": 1}}
        await server.publish("doc", None, key="k000")
        assert await server.word("doc", "k000") is None
        assert [message["offset"] for message in await server.history("doc", since=101)] == [102, 103]
        assert [message["offset"] for message in await server.history("doc", limit=1)] == [103]


async def test_a_program_reads_numbers_that_are_too_large_for_it_as_infinities(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    async with serving(server):
        await server.publish("doc", msgspec.Raw(b"[1e400]"), key="n")
        assert await server.word("doc", "n") == Entry(1, [math.inf])
        assert await server.state("doc") == {"n": Entry(1, [math.inf])}
        assert [message["data"] for message in await server.history("doc")] == [[math.inf]]


async def test_a_program_empties_a_channel_and_sees_who_is_there(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    async with serving(server) as running, running.lines() as peer:
        await server.publish("lobby", 1, key="k")
        await peer.request("hello", name="ann")
        await peer.request("subscribe", channel="lobby", state=True)
        assert (await peer.receive())["entries"] == {"k": {"offset": 1, "data": 1}}
        assert [member["name"] for member in server.members("lobby")] == ["ann"]
        assert server.members("elsewhere") == []
        assert await server.clear("lobby") == 1
        assert await peer.receive() == {"op": "gap", "channel": "lobby", "from": 1, "to": 1, "reason": "trimmed"}
        assert (await peer.receive())["entries"] == {}
        assert await server.publish("lobby", 2) == 2


@pytest.mark.parametrize(
    ("data", "fields", "code"),
    [
        (1, {"key": ""}, "bad_request"),
        (1, {"key": "two\nlines"}, "bad_request"),
        (1, {"expect": 1}, "bad_request"),
        (1, {"key": "k", "expect": -1}, "bad_request"),
        (1, {"key": "k", "ephemeral": True}, "bad_request"),
        (1, {"name": ""}, "bad_request"),
        (1, {"name": "two\nlines"}, "bad_request"),
        (1, {"name": "x" * 65}, "bad_request"),
        ("x" * 2000, {}, "too_large"),
    ],
)
async def test_a_program_is_held_to_the_rules_for_clients(
    tmp_path: Path, data: object, fields: Json, code: str
) -> None:
    server = a_server(tmp_path, message_bytes_max=1024)
    async with serving(server):
        with pytest.raises(WireError) as refused:
            await server.publish("lobby", data, **fields)
        assert refused.value.code == code
        assert await server.history("lobby") == []


async def test_a_number_that_json_does_not_have_is_not_published_as_null(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    async with serving(server):
        await server.publish("doc", 1, key="k")
        for data in (math.nan, [math.inf]):
            with pytest.raises(ValueError, match="JSON has no number"):
                await server.publish("doc", data, key="k")
        assert await server.word("doc", "k") == Entry(1, 1)


async def test_what_is_no_channels_name_and_no_limit_is_a_value_error(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    name = "not a name"
    async with serving(server):
        for call in (
            lambda: server.publish(name, 1),
            lambda: server.history(name),
            lambda: server.state(name),
            lambda: server.word(name, "k"),
            lambda: server.clear(name),
        ):
            with pytest.raises(ValueError, match="no channel's name"):
                await call()
        with pytest.raises(ValueError, match="no channel's name"):
            server.members(name)
        for limit in (0, -1, 1001):
            with pytest.raises(ValueError, match="limit is 1-1000"):
                await server.history("lobby", limit=limit)
        with pytest.raises(ValueError, match="since is 0-9007199254740991, not -1"):
            await server.history("lobby", since=-1)
        wrong: Any
        for wrong in (None, 5, b"lobby", ["lobby"]):
            for call in (lambda: server.publish(wrong, 1), lambda: server.history(wrong), lambda: server.clear(wrong)):  # noqa: B023
                with pytest.raises(TypeError, match="a channel's name is a string, not "):
                    await call()
            with pytest.raises(TypeError, match="a key is a string, not "):
                await server.word("lobby", wrong)
        with pytest.raises(ValueError, match="a key is UTF-8, not "):
            await server.word("lobby", "\ud800")
        with pytest.raises(TypeError, match="since is an integer, not '1'"):
            await server.history("lobby", since="1")  # type: ignore[arg-type]


async def test_where_the_log_cannot_be_had_a_program_is_told_what_a_client_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(log: SqliteLog, *asked: object) -> None:
        raise LogUnavailable("database is locked")

    server = a_server(tmp_path)
    async with serving(server):
        with monkeypatch.context() as patched:
            for way in ("_read", "_write"):
                patched.setattr(SqliteLog, way, fail)
            for call in (
                lambda: server.publish("lobby", 1),
                lambda: server.history("lobby"),
                lambda: server.state("lobby"),
                lambda: server.word("lobby", "k"),
                lambda: server.clear("lobby"),
            ):
                with pytest.raises(WireError, match="database is locked") as refused:
                    await call()
                assert refused.value.code == "unavailable"
        assert await server.publish("lobby", 1) == 1


async def test_before_and_after_it_serves_a_server_cannot_be_asked(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    with pytest.raises(RuntimeError, match="not serving"):
        await server.publish("lobby", 1)
    async with serving(server):
        await server.publish("lobby", 1)
    for call in (lambda: server.publish("lobby", 1), lambda: server.history("lobby")):
        with pytest.raises(RuntimeError, match="not serving"):
            await call()


async def test_a_server_that_ends_leaves_nobody_waiting_for_it(tmp_path: Path) -> None:
    """A task of the program that publishes is not in the server's nursery: nothing else would wake it up."""
    server = a_server(tmp_path)
    outcomes: list[str] = []

    async def publish_until_it_ends() -> None:
        try:
            while True:
                await server.publish("lobby", 1)
        except (WireError, RuntimeError) as ended:
            outcomes.append(type(ended).__name__)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            async with serving(server):
                for _ in range(20):
                    nursery.start_soon(publish_until_it_ends)
                await server.publish("lobby", 1)
    assert len(outcomes) == 20


# trisync serve --app


PROGRAM = """
import trisync

server = trisync.Server(trisync.Settings(keys_max=7))

@server.on_publish("chat.*")
async def clean(publish):
    if not isinstance(publish.data, str):
        raise trisync.Refuse("text only", "bad_request")
    publish.data = publish.data.strip()

not_a_server = 5
"""


async def test_trisync_serve_runs_a_program_s_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_app.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    with server_process(tmp_path / "data", "--app", "my_app:server") as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.tcp_port) as stream:
            peer = LinesPeer(stream)
            limits = (await peer.request("hello"))["limits"]
            assert limits["keys_max"] == 7  # the program's settings
            assert (await peer.request("publish", channel="chat.x", data=1))["message"] == "text only"
            await peer.request("subscribe", channel="chat.x")
            await peer.request("publish", channel="chat.x", data="  hello ")
            assert (await peer.receive())["data"] == "hello"
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("my_app", "--app is MODULE:SERVER"),
        (":server", "--app is MODULE:SERVER"),
        (".my_app:server", "--app is MODULE:SERVER"),
        ("nowhere:server", "there is no module 'nowhere' here"),
        ("my_app:nothing", "the module 'my_app' has no 'nothing'"),
        ("my_app:not_a_server", "my_app:not_a_server is no trisync.Server"),
        ("broken:server", "AttributeError: module 'trisync' has no attribute 'Sever'"),
        ("lost:server", "No module named 'not_installed'"),
        ("unread:server", "No such file or directory: 'not_there'"),
    ],
)
def test_what_cannot_be_served_is_said_clearly(tmp_path: Path, app: str, said: str) -> None:
    (tmp_path / "my_app.py").write_text(PROGRAM)
    (tmp_path / "broken.py").write_text("import trisync\nserver = trisync.Sever()\n")
    (tmp_path / "lost.py").write_text("import not_installed\n")
    (tmp_path / "unread.py").write_text("open('not_there')\n")
    refused = subprocess.run(
        [sys.executable, "-m", "trisync", "serve", "--app", app, "--tcp-port", "0", "--web-port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert refused.returncode != 0
    assert said in " ".join(refused.stderr.split())
    # Where it is the program that fails, its programmer sees where; else nobody needs a traceback.
    assert ("Traceback" in refused.stderr) == (app.split(":")[0] in ("broken", "lost", "unread"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Settings(durability="fulll"), "durability is full or normal, not 'fulll'"),  # type: ignore[arg-type]
        (Settings(tcp_port=-1), "tcp_port: expected int >= 0"),
        (Settings(hook_s="soon"), "hook_s: expected float, got str"),  # type: ignore[arg-type]
    ],
)
async def test_a_programs_settings_are_held_to_what_they_may_be(wrong: Settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        await Server(wrong).serve()


async def test_a_server_serves_once(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    async with serving(server):
        assert server.address is not None
    assert server.address is None
    with pytest.raises(RuntimeError, match="serves once"):
        await server.serve()


async def test_a_program_may_change_its_folder_while_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = Server(settings_for(Path("data")))
    async with serving(server):
        monkeypatch.chdir("/")
        assert await server.publish("lobby", 1) == 1
