"""The tables and sections of protocol.md are true: they are compared with the code."""

import re
from http import HTTPStatus
from pathlib import Path

import msgspec

from tests.harness import running_server
from trisync import config
from trisync.doors import websocket
from trisync.wire import console, dialects, http_answers, http_routes, protocol, wsframes
from trisync.wire.errors import CODES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "protocol.md").read_text()
SOURCES = {
    path.name: path.read_text()
    for folder in ("wire", "core", "sessions", "doors")
    for path in (ROOT / "trisync" / folder).glob("*.py")
}


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
        for name in ("replies.py", "errors.py", "session.py", "reading.py", "cursors.py", "presence.py")
        for op in re.findall(r'"op": ?"(\w+)"|encode_reply\("(\w+)"', SOURCES[name])
        for op in op
        if op
    }
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
