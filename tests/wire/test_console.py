"""The console: what people type, and what reaches their terminals."""

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from trisync.wire.console import FIRST_CHANNEL, HELP, Action, Console, GoOnInJson, Quit, Say, join_console, visible
from trisync.wire.errors import WireError
from trisync.wire.protocol import Hello, History, Publish, Subscribe, Unsubscribe, decode_request
from trisync.wire.replies import encode_gap, encode_goodbye, encode_reply, encode_text, message_prefix, message_suffix


def begun() -> Console:
    """A console whose first line was read."""
    console = Console()
    list(console.read(""))
    return console


def said(actions: Iterable[Action]) -> str:
    """What a line was answered with, where that is all it did."""
    (say,) = actions
    assert isinstance(say, Say)
    return say.text


def message(data: str, channel: str = "lobby", sender: str | None = None) -> bytes:
    return f"{message_prefix(channel)}12{message_suffix(5, sender)}{data}}}".encode()


def shown(data: Any, **fields: Any) -> str:
    return join_console([message(json.dumps(data, ensure_ascii=False), **fields)]).decode()


# Reading


def test_the_first_line_whatever_it_is_lets_people_see_what_is_said_in_the_lobby() -> None:
    for line in ("", "hello", "/help", "/name alice", "/history", "/nonsense", "//x", "   "):
        first, *_ = Console().read(line)
        assert first == Subscribe(id="begin", channel=FIRST_CHANNEL), line


@pytest.mark.parametrize("line", ["/join", "/join bad!", "/join $x", "/join lobby none", "/join lobby 0"])
def test_a_first_line_that_fails_still_lets_people_see_what_is_said(line: str) -> None:
    console = Console()
    actions = list(console.read(line))
    assert Subscribe(id="begin", channel=FIRST_CHANNEL) in actions
    assert console.channel == FIRST_CHANNEL


def test_who_begins_by_joining_elsewhere_is_there_and_not_in_the_lobby() -> None:
    console = Console()
    actions = list(console.read("/join kitchen"))
    assert Subscribe(id="/join", channel="kitchen") in actions
    assert Subscribe(id="begin", channel=FIRST_CHANNEL) not in actions
    console.render(encode_reply("ok", "/join", offset=0))
    assert console.channel == "kitchen"


def test_who_begins_by_leaving_hears_nothing() -> None:
    assert not any(isinstance(action, Subscribe) for action in Console().read("/leave"))
    assert not any(isinstance(action, Subscribe) for action in Console().read("/quit"))


def test_enter_alone_shows_where_one_is_and_the_help() -> None:
    console = begun()
    for line in ("", "  ", "\t", "\r"):
        text = said(console.read(line))
        assert "#lobby" in text
        assert text.endswith(HELP)
    list(console.read("/leave"))
    assert "no channel" in said(console.read(""))


@pytest.mark.parametrize(
    ("line", "text"),
    [("hello", "hello"), ("  two words ", "  two words"), ("//slash", "/slash"), ("///", "//"), ("#x /y", "#x /y")],
)
def test_what_is_no_command_is_published_as_text(line: str, text: str) -> None:
    (publish,) = begun().read(line)
    assert isinstance(publish, Publish)
    assert (publish.channel, json.loads(bytes(publish.data)), publish.id) == ("lobby", text, UNSET)


@given(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=80))
@settings(deadline=None)
def test_no_line_is_too_strange_and_what_it_asks_for_is_always_a_good_request(line: str) -> None:
    console = Console()
    for typed in (line, f"/{line}", f"/join {line}", f"/name {line}", f"/history {line}", line):
        for action in console.read(typed):
            if isinstance(action, Publish):
                text = json.dumps({"op": "publish", "channel": action.channel, "data": json.loads(bytes(action.data))})
                decode_request(text.encode())
            elif isinstance(action, Hello):
                decode_request(json.dumps({"op": "hello", "name": action.name}).encode())
            elif isinstance(action, Subscribe):
                last = {} if action.last is UNSET else {"last": action.last}
                decode_request(json.dumps({"op": "subscribe", "channel": action.channel, **last}).encode())
            elif isinstance(action, History):
                text = json.dumps({"op": "history", "channel": action.channel, "limit": action.limit})
                decode_request(text.encode())
            elif isinstance(action, Say):
                assert all(map(is_safe, action.text.splitlines(keepends=True)))


def test_what_is_wrong_with_a_join_is_said() -> None:
    for line in ("/join lobby none", "/join lobby 0", "/join lobby 1001"):
        assert said(begun().read(line)) == "! /join CHANNEL [N]: N is 1 to 1000\n"
    assert "a channel's name" in said(begun().read("/join $x 5"))


def test_the_help_fits_a_terminal_of_80_columns() -> None:
    assert max(len(line) for line in HELP.splitlines()) < 80


def test_help_names_every_command() -> None:
    assert said(begun().read("/help")) == HELP
    for command in ("/join", "/leave", "/name", "/history", "/json", "/quit", "//"):
        assert command in HELP


@pytest.mark.parametrize(
    ("line", "channel", "last"),
    [
        ("/join kitchen", "kitchen", UNSET),
        ("/join #kitchen", "kitchen", UNSET),
        ("/join a/b:c 1", "a/b:c", 1),
        ("/join kitchen 1000", "kitchen", 1000),
        ("/join  kitchen  20 ", "kitchen", 20),
    ],
)
def test_joining_leaves_the_channel_before(line: str, channel: str, last: Any) -> None:
    console = begun()
    assert list(console.read(line)) == [Unsubscribe(channel="lobby"), Subscribe(id="/join", channel=channel, last=last)]
    console.render(encode_reply("ok", "/join", offset=0))
    assert console.channel == channel


def test_a_join_that_is_refused_leaves_one_in_no_channel_and_says_so() -> None:
    console = begun()
    list(console.read("/join staff"))
    refused = WireError("forbidden", "for the staff").encode("/join")
    assert console.render(refused) == "! for the staff (forbidden)\n* you are in no channel\n"
    assert said(console.read("is anybody here?")) == "! you are in no channel: /join one\n"


def test_who_is_refused_the_first_channel_is_in_none_and_told_so() -> None:
    console = Console()
    actions = console.read("is anybody here?")
    assert next(actions) == Subscribe(id="begin", channel=FIRST_CHANNEL)
    refused = WireError("forbidden", "for the staff").encode("begin")
    assert console.render(refused) == "! for the staff (forbidden)\n* you are in no channel\n"
    assert said(actions) == "! you are in no channel: /join one\n"
    assert said(console.read("is anybody here?")) == "! you are in no channel: /join one\n"

    elsewhere = Console()
    list(elsewhere.read("is anybody here?"))
    list(elsewhere.read("/join kitchen"))
    elsewhere.render(encode_reply("ok", "/join", offset=0))
    elsewhere.render(refused)
    assert elsewhere.channel == "kitchen"


def test_who_is_refused_to_begin_anew_where_they_are_stays_there() -> None:
    console = begun()
    list(console.read("/join lobby 1000"))
    assert console.render(WireError("forbidden", "too many").encode("/join")) == "! too many (forbidden)\n"
    assert console.channel == "lobby"


def test_joining_where_one_is_already_begins_there_again() -> None:
    assert list(begun().read("/join lobby 5")) == [Subscribe(id="/join", channel="lobby", last=5)]


NO_COUNTS = ["0", "1001", "-1", "x", "1.5", "+1", "٣", "²", "1 2", "1000000", "000019999", "00001" + "9" * 5000]


@pytest.mark.parametrize("count", NO_COUNTS)
def test_a_count_is_one_to_a_thousand(count: str) -> None:
    console = begun()
    assert said(console.read(f"/join kitchen {count}")).startswith("! /join")
    assert said(console.read(f"/history {count}")).startswith("! /history")
    assert console.channel == "lobby"


def test_leaving_puts_one_in_no_channel() -> None:
    console = begun()
    assert list(console.read("/leave")) == [Unsubscribe(id="/leave", channel="lobby")]
    for line in ("/leave", "hello", "//x", "/history"):
        assert "no channel" in said(console.read(line))
    assert list(console.read("/join lobby")) == [Subscribe(id="/join", channel="lobby")]


def test_names_are_one_to_sixty_four_printable_characters() -> None:
    console = begun()
    assert list(console.read("/name alice")) == [Hello(id="/name", name="alice")]
    assert list(console.read("/name  Zoë B. ")) == [Hello(id="/name", name="Zoë B.")]
    assert list(console.read("/name " + "x" * 64)) == [Hello(id="/name", name="x" * 64)]
    assert list(console.read("/name علی\u200cرضا")) == [Hello(id="/name", name="علی\u200cرضا")]  # needs its joiner
    for name in ("", "x" * 65, "a\x1bb", "a\u2028b", "a\tb"):
        assert said(console.read(f"/name {name}")) == "! /name NAME: 1 to 64 printable characters\n"


def test_keys_are_printable_and_without_a_space() -> None:
    console = begun()
    (publish,) = console.read("/set علی\u200cرضا 1")
    assert isinstance(publish, Publish)
    assert publish.key == "علی\u200cرضا"
    for command in ("/set", "/set key", "/set a\u2028b 1", "/get two keys", "/get a\x1bb", "/get " + "é" * 257):
        text = said(console.read(command))
        assert text == "! /set KEY VALUE, /get [KEY]: a key is 1 to 512 printable bytes, no spaces\n"


def test_history_is_the_last_twenty_unless_said_otherwise() -> None:
    console = begun()
    assert list(console.read("/history")) == [History(id="/history", channel="lobby", limit=20)]
    assert list(console.read("/history 3")) == [History(id="/history", channel="lobby", limit=3)]


def test_json_and_quit_end_the_console() -> None:
    assert list(begun().read("/json")) == [GoOnInJson()]
    say, end = begun().read("/quit")
    assert isinstance(say, Say)
    assert end == Quit()


@pytest.mark.parametrize("line", ["/nonsense", "/", "/JOIN x", "/joinx", "/\x1b[2J"])
def test_an_unknown_command_is_no_message_and_shows_no_escapes(line: str) -> None:
    text = said(begun().read(line))
    assert "no command" in text
    assert "\x1b" not in text


def test_a_long_line_that_begins_with_a_slash_is_not_repeated_whole() -> None:
    assert len(said(begun().read("/usr/" + "x" * 100_000))) < 100


# Showing


def test_messages_are_one_line_each() -> None:
    assert shown("hello") == "#lobby 12 anonymous: hello\n"
    assert shown("hello", sender="alice", channel="a/b") == "#a/b 12 alice: hello\n"
    assert shown({"a": [1, None], "b": "é"}) == '#lobby 12 anonymous: {"a":[1,null],"b":"é"}\n'
    assert shown("") == "#lobby 12 anonymous: \n"
    two = join_console([message("1"), message("2")])
    assert two == b"#lobby 12 anonymous: 1\n#lobby 12 anonymous: 2\n"


def test_what_is_not_stored_has_no_offset() -> None:
    payload = b'{"op":"message","channel":"lobby","time":5,"data":"typing"}'
    assert join_console([payload]) == b"#lobby - anonymous: typing\n"


def test_escapes_and_tricks_with_direction_are_spelled_out() -> None:
    assert shown("\x1b[2J") == "#lobby 12 anonymous: \\x1b[2J\n"
    assert shown("a\nb\r\tc") == "#lobby 12 anonymous: a\\nb\\r\\tc\n"
    assert shown("\u202egnp.exe", sender="a\u200eb") == "#lobby 12 a\\u200eb: \\u202egnp.exe\n"
    assert shown({"\x9b": "\x07"}).isascii()


def test_what_holds_letters_and_emoji_together_stays() -> None:
    family = "\U0001f468\u200d\U0001f469"
    assert visible(family) == family
    assert shown("می\u200cخواهم") == "#lobby 12 anonymous: می\u200cخواهم\n"


def test_spaces_that_are_not_ascii_stay_and_may_be_in_names() -> None:
    for text in ("山田\u3000太郎", "10\u202f000\xa0€\u2009!"):
        assert shown(text, sender=text) == f"#lobby 12 {text}: {text}\n"
        assert list(begun().read(f"/name {text}")) == [Hello(id="/name", name=text)]
    assert visible("\u3000\x1b\\") == "\u3000\\x1b\\"


def test_beside_what_is_spelled_out_quotes_and_backslashes_stay() -> None:
    assert visible('\x07 it\'s "C:\\temp" \\x07 \\udc00 \\\n') == '\\x07 it\'s "C:\\temp" \\x07 \\udc00 \\\\n'


def is_safe(text: str) -> bool:
    """Whether text is one line and moves nothing in a terminal."""
    return text.endswith("\n") and not any(
        unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and char not in "\u200c\u200d"
        for char in text[:-1]
    )


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.none() | st.text(min_size=1, max_size=64)


@settings(max_examples=200, deadline=None)
@given(anything, names, st.booleans(), st.sampled_from([None, 1]))
def test_any_message_is_one_line_without_control_characters(
    data: Any, sender: str | None, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(data, ensure_ascii=ascii_only, indent=indent).replace("\n", " ")
    output = join_console([message(text, sender=sender), message(text, channel="x" * 200)]).decode()
    first, second, nothing = output.split("\n")
    assert nothing == ""
    assert is_safe(first + "\n")
    assert is_safe(second + "\n")


@pytest.mark.parametrize(
    "data",
    [
        "1e999",
        "-0",
        "9" * 5000,
        "[" * 63 + "]" * 63,
        '{"a":1,"a":2}',
        r'"\ud83d\ude00\u0000"',
        r'{"\u001b":"\u009b"}',
        '  "spaced"  ',
        "[ 1 , 2 ]",
        '{"":[]}',
    ],
)
def test_odd_data_is_shown_and_does_not_break_the_console(data: str) -> None:
    request = decode_request(f'{{"op":"publish","channel":"lobby","data":{data}}}'.encode())
    assert isinstance(request, Publish)
    assert is_safe(join_console([message(data)]).decode())


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (encode_reply("ok", "/join", offset=7), "* you are in #lobby, which is at 7\n"),
        (encode_reply("ok", "/leave"), "* you are in no channel\n"),
        (encode_reply("ok", "/history", messages=[], offset=0, more=False), "* nothing yet\n"),
        (encode_reply("pong", 1), ""),
        (encode_gap("a", "trimmed", 3, 9), "* #a: messages 3 to 9 are gone\n"),
        (encode_gap("a", "epoch"), "* #a: the log was replaced; it begins again\n"),
        (encode_goodbye(1700), "* the server is stopping; come back in 1.7 s\n"),
        (WireError("bad_request", "no \x1b[2J").encode(), "! no \\x1b[2J (bad_request)\n"),
        (WireError("limit", "too many", limit=1).encode("/join"), "! too many (limit)\n"),
    ],
)
def test_the_servers_own_messages_are_put_into_words(payload: bytes, text: str) -> None:
    assert begun().render(payload) == text


def test_a_persons_new_name_is_acknowledged() -> None:
    assert begun().render(encode_reply("ok", "/name", protocol=1)).startswith("* ")


def test_history_is_shown_as_the_messages_were() -> None:
    messages = b",".join([message('"one"'), message('{"n":2}', sender="bob\x07")])
    payload = b'{"op":"ok","id":"/history","offset":12,"messages":[' + messages + b"]}"
    assert begun().render(payload) == '#lobby 12 anonymous: one\n#lobby 12 bob\\x07: {"n":2}\n'


def test_history_says_what_is_gone_only_where_that_would_come_next() -> None:
    def told(**fields: Any) -> str:
        return begun().render(encode_reply("ok", "/history", offset=12, **fields))

    newest = [Raw(message('"one"'))]
    assert told(messages=newest, trimmed=11) == "* messages 1 to 11 are gone\n#lobby 12 anonymous: one\n"
    assert told(messages=newest, trimmed=10) == "#lobby 12 anonymous: one\n"
    assert told(messages=[], trimmed=12) == "* messages 1 to 12 are gone\n* nothing yet\n"


@pytest.mark.parametrize("number", ["1e400", "-" + "9" * 5000])
def test_a_number_that_python_cannot_hold_is_shown_as_it_came(number: str) -> None:
    entries = f'{{"op":"ok","id":"/get","offset":9,"entries":{{"n":{{"offset":9,"data":{number}}}}},"more":false}}'
    assert begun().render(entries.encode()) == f"n = {number}\n"
    history = b'{"op":"ok","id":"/history","offset":12,"messages":[' + message(number) + b"]}"
    assert begun().render(history) == f"#lobby 12 anonymous: {number}\n"


def test_every_error_code_is_put_into_words() -> None:
    assert begun().render(WireError("unavailable", "disk full").encode()) == "! disk full (unavailable)\n"


@given(st.text(max_size=30))
@settings(deadline=None)
def test_what_is_visible_stays_as_it_is(text: str) -> None:
    assert is_safe(visible(text) + "\n")
    if text.isprintable():
        assert visible(text) == text
    assert json.loads(encode_text(text)) == text
