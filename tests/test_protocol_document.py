"""protocol.md is true: its examples are run, and its tables and sections are compared with the code.

Every fenced block is a conversation with a fresh server, in the notation that the page explains.
"""

import json
import re
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed

from tests.harness import (
    PATIENCE_S,
    FramesPeer,
    Json,
    LinesPeer,
    Running,
    WebSocketPeer,
    running_server,
    settings_for,
)
from tests.http_examples import run_http_example
from trisync import config
from trisync.doors import websocket
from trisync.storage.sqlite_log import SqliteLog
from trisync.wire import console, dialects, http_answers, http_routes, protocol, wsframes
from trisync.wire.errors import CODES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "protocol.md").read_text()
SOURCES = {
    path.name: path.read_text()
    for folder in ("wire", "core", "sessions", "doors")
    for path in (ROOT / "trisync" / folder).glob("*.py")
}

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


# Tables and sections


def section(title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", PAGE, re.MULTILINE)
    assert found, f"there is no section {title}"
    rest = PAGE[found.end() :]
    following = re.search(rf"^#{{1,{len(found[1])}}} ", without_blocks(rest), re.MULTILINE)
    return rest[: following.start()] if following else rest


def without_blocks(text: str) -> str:
    """Text whose fenced blocks are blanked out, in the same length."""
    return re.sub(r"^```[\s\S]*?^```$", lambda found: " " * len(found[0]), text, flags=re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """The rows of all tables in a text, without heads and rules."""
    lines = [line for line in without_blocks(text).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {at - 1 for at, row in enumerate(cells) if set(row[0]) <= set("-")}
    return [row for at, row in enumerate(cells) if at not in heads and at - 1 not in heads]


def table(text: str) -> dict[str, list[str]]:
    """The rows by the first cell without its backticks; none may come twice."""
    found = rows(text)
    by_name = {row[0].strip("`"): row[1:] for row in found}
    assert len(by_name) == len(found)
    return by_name


def headings(text: str) -> list[str]:
    """The headings of the third level, without backticks."""
    return [found.strip("`") for found in re.findall(r"^### (.*)$", without_blocks(text), re.MULTILINE)]


def test_the_error_table_is_that_of_the_code() -> None:
    documented = {code: (cells[-2], cells[-1]) for code, cells in table(section("Error codes")).items()}
    assert documented == {
        code: ("yes" if row.retry else "no", "closes" if row.closes else "goes on") for code, row in CODES.items()
    }


def test_every_operation_has_a_section() -> None:
    assert headings(section("Operations")) == list(protocol.OPERATIONS)


def test_every_message_of_the_server_has_a_section() -> None:
    sent = {
        op
        for name in ("protocol.py", "errors.py", "session.py", "cursors.py", "presence.py")
        for op in re.findall(r'"op": ?"(\w+)"|encode_reply\("(\w+)"', SOURCES[name])
        for op in op
        if op
    } - {"publish"}  # the request that compose_publish() makes
    assert {heading.split()[0].strip("`") for heading in headings(section("What the server sends"))} == sent


def test_every_field_of_a_request_is_documented() -> None:
    kinds = (
        protocol.Hello,
        protocol.Publish,
        protocol.Subscribe,
        protocol.Unsubscribe,
        protocol.History,
        protocol.GetState,
        protocol.GetPresence,
        protocol.Ping,
    )
    assert [str(kind.__struct_config__.tag) for kind in kinds] == list(protocol.OPERATIONS)
    reserved = section("Reserved for later versions")
    for kind in kinds:
        text = section(f"`{kind.__struct_config__.tag}`")
        documented = set(table(text)) if rows(text) else set()
        for field in msgspec.structs.fields(kind):
            if field.name == "id" or f"`{field.name}`" in reserved or f'"{field.name}":' in without_blocks(reserved):
                continue
            shown = field.name if field.required else f"{field.name}?"
            assert shown in documented or f"`{shown}`" in text, (kind, shown)


def test_every_console_command_is_documented_and_there() -> None:
    documented = {name for name in table(section("The console")) if name.startswith("/")}
    helped = {line.split("  ")[1] for line in console.HELP.splitlines() if line.startswith("  /")}
    assert documented == helped | {"/help"}
    for name in documented:
        command = name.split()[0]
        said = [action for action in console.Console().read(command) if isinstance(action, console.Say)]
        assert not any("there is no command" in action.text for action in said), command


async def test_the_limits_that_hello_tells_are_documented(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        limits = (await peer.request("hello"))["limits"]
    told, _, not_told = section("Limits").partition("These settings are not told")
    assert {name: int(cells[0]) for name, cells in table(told).items()} == limits
    assert not set(table(not_told)) & set(limits)


def test_settings_are_named_with_their_defaults() -> None:
    fields = config.fields()
    for text in (section("Limits").partition("These settings are not told")[2], section("Deadlines")):
        named = table(text)
        assert named
        for name, cells in named.items():
            assert float(cells[0]) == config.default(fields[name]), name
    assert {name for name in fields if name.endswith("_s")} - set(table(section("Deadlines"))) == {
        "cache_ttl_s",  # nothing that a client could notice
        "producer_idle_s",  # with the producers
    }
    assert f"`producer_idle_s` ({config.default(fields['producer_idle_s']) / 86400:g} days)" in PAGE


def test_every_close_code_is_documented() -> None:
    named = [*vars(websocket).values(), *vars(wsframes).values()]
    used = {code for code in named if type(code) is int and 1000 <= code < 1016}
    assert len(used) > 5
    assert {int(code) for code in table(section("Close codes"))} == used


def test_every_http_status_is_documented() -> None:
    used = {
        int(status)
        for name in ("http.py", "http_rules.py")
        for status in re.findall(r"HttpRefusal\(\s*(\d{3})\b", SOURCES[name])
    }
    used |= {431, 501}  # h11's own words
    cells = [row[0] for row in rows(section("Which requests are taken"))]
    assert {int(status) for cell in cells for status in cell.split(", ")} == used


def test_every_call_over_http_is_documented_with_its_parameters() -> None:
    documented = {
        tuple(cells[0].strip("`").split(" ")): tuple(re.findall(r"`(\w+)`", cells[1]))
        for cells in rows(section("Calls"))
    }
    assert documented == {
        (method, resource.value): parameters
        for resource, methods in http_routes.METHODS.items()
        for method, parameters in methods.items()
    }


def test_every_status_of_a_call_is_documented() -> None:
    names = ("http_routes.py", "http_answers.py", "http_api.py", "http_calls.py")
    numbers = {int(number) for name in names for number in re.findall(r"\b[2-5]\d\d\b", SOURCES[name])}
    used = numbers & set(HTTPStatus)
    documented = table(section("Statuses"))
    assert {int(status) for status in documented} == used
    for code, status in http_answers.STATUSES.items():
        assert f"`{code}`" in documented[str(status)][0], code


def test_the_http_methods_that_the_tcp_door_closes_on_are_documented() -> None:
    found = re.search(r"The methods so refused are ([A-Z, \n]+) and ([A-Z]+)\.", PAGE)
    assert found
    documented = {*re.split(r",\s+", found[1]), found[2]}
    assert documented == {method.decode().strip() for method in dialects._HTTP_METHODS}


def test_the_first_bytes_mean_what_the_page_says() -> None:
    named = {"00": "frames", "7B": "lines", "FF": "telnet", "16": "TLS"}
    documented = table(section("Doors and dialects").partition("| first byte |")[2])
    for byte in range(256):
        dialect = dialects.tell_dialect(bytes((byte,)) + b"\xbb..")
        assert dialect is not None
        shown = f"{byte:02X}"
        if shown in named:
            row = next(cells for first, cells in documented.items() if first.startswith(shown))
            assert row[0].startswith(named[shown])
            assert dialect.value.startswith(named[shown])
        elif (byte < 0x20 and byte not in b"\r\n") or byte == 0x7F:
            assert dialect is dialects.Dialect.CONTROL
        elif byte not in b" \t":
            assert dialect is dialects.Dialect.CONSOLE


def test_the_numbers_in_the_text_are_the_code_s() -> None:
    assert f"nested at most {protocol.DEPTH_MAX} deep" in PAGE
    assert f"`message_bytes_max` + {protocol.REPLY_HEADROOM_BYTES}" in PAGE
    assert f"The last {protocol.UNANSWERED_MAX} verdicts" in PAGE
    assert f"integer, 1 to {protocol.HISTORY_LIMIT_MAX}" in PAGE
    assert f"at most so many; {protocol.HISTORY_LIMIT_DEFAULT} if left out" in PAGE
    assert f"1 to {protocol.HISTORY_LIMIT_MAX}, else {console.HISTORY_DEFAULT}" in PAGE
    assert f"1 to {protocol.KEY_BYTES_MAX} bytes of UTF-8" in PAGE
    assert f"at most {protocol.STATE_LIMIT} an answer" in " ".join(PAGE.split())
    spread = config.default(config.fields()["reconnect_spread_ms"])
    assert f"from 0 to just below {spread} (the setting `reconnect_spread_ms`)" in " ".join(PAGE.split())


def test_links_within_the_page_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.*)$", without_blocks(PAGE), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    linked = set(re.findall(r"\]\(#([^)]*)\)", PAGE))
    assert linked
    assert linked <= anchors
    assert len(anchors) == len(titles)
