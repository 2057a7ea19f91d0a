"""The examples in protocol.md are true: every fenced block is a conversation, and is held with a fresh server.

Their notation is what the page explains.
"""

import json
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from trio_websocket import ConnectionClosed

from tests.harness import PATIENCE_S, FramesPeer, Json, LinesPeer, Running, WebSocketPeer, running_server, settings_for
from tests.http_examples import run_http_example
from trisync.storage.sqlite_log import SqliteLog

PAGE = (Path(__file__).parent.parent / "protocol.md").read_text()

LABELS = {"lines", "frames", "websocket", "console", "telnet", "http"}


class Block(NamedTuple):
    """A fenced block of the page."""

    label: str
    line: int
    steps: list[str]


BLOCKS = [
    Block(found[1], PAGE.count("\n", 0, found.start()) + 1, found[2].splitlines())
    for found in re.finditer(r"^```(.*)\n([\s\S]*?)^```$", PAGE, re.MULTILINE)
]


# Placeholders


class Placeholder(NamedTuple):
    """`<time>` in an example."""

    name: str


ANY_TEXT = "…"
KINDS = {
    "time": int,
    "reconnect_ms": int,
    "limits": dict,
    "epoch": str,
    "server": str,
    "session": str,
    "member": str,
    "bytes": int,
}
"""What stands behind a placeholder, by its name without a number at the end."""

_PLACEHOLDER = re.compile(r"(?<=[:,\[])<([a-z_]+\d*)>")
_MARK = "placeholder "


def read_example(text: str) -> Any:
    """JSON with placeholders."""

    def unmark(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unmark(member) for key, member in value.items()}
        if isinstance(value, list):
            return [unmark(item) for item in value]
        if isinstance(value, str) and value.startswith(_MARK):
            return Placeholder(value.removeprefix(_MARK))
        return value

    return unmark(json.loads(_PLACEHOLDER.sub(lambda found: f'"{_MARK}{found[1]}"', text)))


def fill_in(text: str, bound: Json) -> str:
    """What a client sends, with the values that its placeholders got before."""
    return _PLACEHOLDER.sub(lambda found: json.dumps(bound[found[1]]), text)


def differs(shown: Any, real: Any, bound: Json, where: str = "") -> str | None:
    """How a value differs from the one shown, None where it does not; binds placeholders seen for the first time."""
    if isinstance(shown, Placeholder):
        kind = KINDS[shown.name.rstrip("0123456789")]
        if type(real) is not kind:
            return f"{where} is a {type(real).__name__}, and <{shown.name}> stands for a {kind.__name__}"
        first = bound.setdefault(shown.name, real)
        return None if first == real else f"{where} is {real!r}, and <{shown.name}> was {first!r}"
    if shown == ANY_TEXT and isinstance(real, str):
        return None
    if type(shown) is not type(real):
        return f"{where} is {real!r}, shown is {shown!r}"
    if isinstance(shown, dict):
        if shown.keys() != real.keys():
            return f"{where} has the members {sorted(real)}, shown are {sorted(shown)}"
        pairs = [(f"{where}.{key}", shown[key], real[key]) for key in shown]
    elif isinstance(shown, list):
        if len(shown) != len(real):
            return f"{where} has {len(real)} items, shown are {len(shown)}"
        pairs = [(f"{where}[{at}]", a, b) for at, (a, b) in enumerate(zip(shown, real, strict=True))]
    else:
        return None if shown == real else f"{where} is {real!r}, shown is {shown!r}"
    return next((difference for at, a, b in pairs if (difference := differs(a, b, bound, at))), None)


def check(shown: str, real: str | bytes, bound: Json) -> None:
    """Fail unless a JSON text is as shown."""
    difference = differs(read_example(shown), json.loads(real), bound)
    assert difference is None, f"{difference}\nshown: {shown}\nreal:  {real!r}"


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ('{"a":1}', {"a": 1, "b": 2}),
        ('{"a":1,"b":2}', {"a": 1}),
        ('{"a":1}', {"a": 2}),
        ('{"a":1}', {"a": True}),
        ('{"a":1}', {"a": 1.0}),
        ('{"a":[1]}', {"a": [1, 2]}),
        ('{"a":[{"b":null}]}', {"a": [{"b": 0}]}),
        ('{"a":"…"}', {"a": 5}),
        ('{"a":<time>}', {"a": "soon"}),
        ('{"a":<time>,"b":<time>}', {"a": 1, "b": 2}),
    ],
)
def test_an_example_that_is_not_true_is_noticed(shown: str, real: Json) -> None:
    assert differs(read_example(shown), real, {})


def test_placeholders_stand_for_one_value_each_in_an_example() -> None:
    bound: Json = {}
    shown = '{"a":[<time1>,<time1>,<time2>],"b":"…","c":<epoch>}'
    assert differs(read_example(shown), {"a": [1, 1, 2], "b": "x", "c": "e"}, bound) is None
    assert bound == {"time1": 1, "time2": 2, "epoch": "e"}
    assert fill_in('{"since":<time2>,"epoch":<epoch>}', bound) == '{"since":2,"epoch":"e"}'


# Clients, as the examples use them


class Client:
    """One letter of an example."""

    def __init__(self, bound: Json) -> None:
        self.bound = bound
        self.ended = False

    async def send(self, text: str) -> None:
        """Do what stands behind `>`."""
        raise NotImplementedError

    async def expect(self, text: str) -> None:
        """Receive what stands behind `<`."""
        raise NotImplementedError

    async def expect_end(self, code: int | None) -> None:
        """The server closes, and nothing was sent that the example does not show."""
        raise NotImplementedError

    async def hang_up(self) -> None:
        """The client closes."""
        raise NotImplementedError

    async def expect_nothing_more(self) -> None:
        """Nothing was sent that the example does not show."""
        raise NotImplementedError


class LinesClient(Client):
    """Lines, and the console."""

    def __init__(self, peer: LinesPeer, bound: Json, *, is_person: bool = False) -> None:
        super().__init__(bound)
        self.peer = peer
        self.is_person = is_person

    async def send(self, text: str) -> None:
        await self.peer.send_bytes(fill_in(text, self.bound).encode())
        if self.is_person and text == "/json":
            self.is_person = False

    async def expect(self, text: str) -> None:
        line = await self.peer.receive_bytes()
        if self.is_person:
            assert line.decode() == text
        else:
            check(text, line, self.bound)

    async def expect_end(self, code: int | None) -> None:
        assert code is None
        with pytest.raises(EOFError) as ended:
            await self.peer.receive_bytes()
        assert ended.value.args == (b"",)

    async def hang_up(self) -> None:
        await self.peer.stream.aclose()

    async def expect_nothing_more(self) -> None:
        if self.is_person:
            await self.send("/quit")
            await self.expect("Good-bye.")
            await self.expect_end(None)
        else:
            await self.send('{"op":"ping","id":"the end"}')
            await self.expect('{"op":"pong","id":"the end"}')


class BytesClient(LinesClient):
    """Bytes in hexadecimal with ASCII beside them: frames, where an object stands for its frame, and telnet."""

    async def send(self, text: str) -> None:
        if text.startswith("{"):
            await self.peer.send_bytes(text.encode())
        else:
            await self.peer.stream.send_all(read_hex(text))

    async def expect(self, text: str) -> None:
        if text.startswith("{"):
            await super().expect(text)
            return
        shown = read_hex(text)
        assert isinstance(self.peer, FramesPeer)
        real = await self.peer._exactly(len(shown))
        assert real == shown, f"{real.hex(' ')} is not {shown.hex(' ')}"


def read_hex(text: str) -> bytes:
    """The bytes of a line such as `3a 7d | :}`."""
    digits, bar, ascii = text.partition("|")
    data = bytes.fromhex(digits)
    beside = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    assert bar, f"there is no ASCII beside {digits}"
    assert ascii.strip() == beside.strip(), f"beside {digits} stands {ascii!r}, and not {beside!r}"
    return data


class WebSocketClient(Client):
    """WebSocket, by the library's client side."""

    def __init__(self, peer: WebSocketPeer, bound: Json) -> None:
        super().__init__(bound)
        self.peer = peer

    async def send(self, text: str) -> None:
        if text == "(binary)":
            await self.peer.websocket.send_message(b"{}")
        else:
            await self.peer.send_bytes(fill_in(text, self.bound).encode())

    async def expect(self, text: str) -> None:
        check(text, await self.peer.receive_bytes(), self.bound)

    async def expect_end(self, code: int | None) -> None:
        with pytest.raises(ConnectionClosed) as closed:
            await self.peer.receive_bytes()
        assert closed.value.reason is not None
        assert closed.value.reason.code == code

    async def hang_up(self) -> None:
        await self.peer.websocket.aclose()
        # The library leaves the socket open where the server closed first.
        await trio.aclose_forcefully(self.peer.websocket._stream)

    async def expect_nothing_more(self) -> None:
        await self.send('{"op":"ping","id":"the end"}')
        await self.expect('{"op":"pong","id":"the end"}')


# Running an example


class Example:
    """A conversation in the making."""

    def __init__(self, folder: Path, label: str) -> None:
        self.folder = folder
        self.label = label
        self.bound: Json = {}
        self.clients: dict[str, Client] = {}
        self.stack = AsyncExitStack()
        self.running: Running | None = None

    async def run(self, steps: list[str]) -> None:
        try:
            await self.start()
            for step in steps:
                await self.step(step)
            await self.all_is_shown()
        finally:
            await self.stack.aclose()

    async def start(self) -> None:
        self.running = await self.stack.enter_async_context(running_server(self.folder))

    async def step(self, step: str) -> None:
        if step.startswith("("):
            await self.happen(step)
            return
        found = re.fullmatch(r"([A-Z]?)([<>])(?: (.*))?", step)
        assert found, f"what is {step!r}?"
        letter, direction, text = found[1], found[2], found[3] or ""
        if letter not in self.clients:
            assert direction == ">", "the server never speaks first"
            self.clients[letter] = await self.connect()
        with trio.fail_after(PATIENCE_S):
            await self.talk(letter, direction, text)

    async def talk(self, letter: str, direction: str, text: str) -> None:
        """One line of one client."""
        client = self.clients[letter]
        assert not client.ended, text
        closes = re.fullmatch(r"\(closes(?: (\d+))?\)", text)
        if closes:
            client.ended = True
            if direction == "<":
                await client.expect_end(int(closes[1]) if closes[1] else None)
            await client.hang_up()
        elif direction == ">":
            await client.send(text)
        else:
            await client.expect(text)

    async def connect(self) -> Client:
        assert self.running is not None
        match self.label:
            case "lines" | "console":
                lines = await self.stack.enter_async_context(self.running.lines())
                return LinesClient(lines, self.bound, is_person=self.label == "console")
            case "frames" | "telnet":
                return BytesClient(await self.stack.enter_async_context(self.running.frames()), self.bound)
            case _:
                peer = await self.stack.enter_async_context(self.running.websocket())
                return WebSocketClient(peer, self.bound)

    async def happen(self, event: str) -> None:
        """What befalls the server."""
        assert self.running is not None
        if event == "(stop)":
            self.running.server.drain()
            return
        if empty := re.fullmatch(r"\(empty (\S+)\)", event):
            await self.running.server.clear(empty[1])
            return
        trim = re.fullmatch(r"\(trim (\S+) (\d+)\)", event)
        assert trim or event == "(restart)", event
        await self.all_is_shown()
        await self.stack.aclose()
        self.clients.clear()
        if trim:
            settings = settings_for(self.folder)
            log = await SqliteLog.open(Path(settings.data), settings)
            try:
                await log.trim({trim[1]: int(trim[2])}, 1000)
            finally:
                await log.aclose()
        await self.start()

    async def all_is_shown(self) -> None:
        with trio.fail_after(PATIENCE_S):
            for client in self.clients.values():
                if not client.ended:
                    await client.expect_nothing_more()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.label}-at-line-{block.line}")
async def test_an_example_is_what_happens(tmp_path: Path, block: Block) -> None:
    assert block.label in LABELS
    if block.label == "http":
        await run_http_example(tmp_path, block.steps, check)
    else:
        await Example(tmp_path, block.label).run(block.steps)


def test_there_are_examples_of_every_dialect() -> None:
    assert {block.label for block in BLOCKS} == LABELS
    assert PAGE.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize(
    "steps",
    [
        ['> {"op":"ping","id":1}', '< {"op":"pong","id":2}'],
        ['> {"op":"ping","id":1}'],
        ['> {"op":"ping","id":1}', '< {"op":"pong","id":1}', "< (closes)"],
        ['> {"op":"ping","id":1}', '< {"op":"pong","id":1}', '< {"op":"pong","id":1}'],
    ],
    ids=["another-answer", "an-answer-not-shown", "no-end", "no-second-answer"],
)
async def test_an_example_that_does_not_happen_fails(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.PATIENCE_S", 0.2)
    with pytest.raises((AssertionError, trio.TooSlowError)):
        await Example(tmp_path, "lines").run(steps)
