"""The dialect of people at netcat and telnet: what they type to requests, and the server's messages to text.

Sans-IO. A person is in one channel at a time; what is no command is published to it. Nothing that others
wrote reaches a terminal as control characters or escapes.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw

from trisync.wire.data import decode_data
from trisync.wire.protocol import (
    HISTORY_LIMIT_MAX,
    KEY_BYTES_MAX,
    AnyRequest,
    BadRequest,
    GetPresence,
    GetState,
    Hello,
    History,
    Publish,
    Subscribe,
    Unsubscribe,
    channel_is_valid,
    compose_publish,
    shortened,
)

FIRST_CHANNEL = "lobby"
HISTORY_DEFAULT = 20
NOBODY = "anonymous"

HELP = """\
What you type is published to the channel you are in; you see what others say.
  /join CHANNEL [N]   go to another channel, beginning with its last N messages
  /leave              be in no channel
  /name NAME          say who you are
  /history [N]        the last N messages here
  /set KEY VALUE      set a key of this channel's state: VALUE is JSON, or else
                      text; null deletes the key
  /get [KEY]          the state of this channel, or of one key
  /who                who is here
  /json               go on in JSON lines, as programs do
  /quit               good-bye
A line that begins with // is published with one slash.
"""


class Say(NamedTuple):
    """Text for the person, as it is."""

    text: str


class GoOnInJson(NamedTuple):
    """The rest of the connection is the lines dialect."""


class Quit(NamedTuple):
    """The person wants to leave."""


Action = AnyRequest | Say | GoOnInJson | Quit

_BEGIN = "begin"
"""The id of joining the first channel, for which nobody typed a command."""
_NOWHERE = "! you are in no channel: /join one\n"
_NOW_NOWHERE = "* you are in no channel\n"


# What repr() would escape and need not is a lone surrogate meanwhile, which no text has. The backslash comes back last:
# until then, each one begins an escape.
_KEPT = {kept: chr(0xDC00 + place) for place, kept in enumerate("'\u200c\u200d\xa0\u2009\u202f\u3000\\")}


def visible(text: str) -> str:
    """Text that is safe in a terminal and stays on its line: what is not printable is shown as an escape.

    Joiners (U+200C, U+200D) stay: they hold emoji and scripts together and move nothing. So do the spaces that people
    type: U+3000 stands between Japanese words and names, U+00A0, U+2009 and U+202F within French and numbers.
    """
    if text.isprintable():
        return text
    # By repr(), without a step for each character: a megabyte of them, all different, takes 20 ms so, and took 400.
    for kept, stand_in in _KEPT.items():
        text = text.replace(kept, stand_in)
    text = repr(text)[1:-1]
    for kept, stand_in in _KEPT.items():
        text = text.replace(repr(stand_in)[1:-1], kept)
    return text


def message_line(payload: bytes) -> str:
    """A `message` as people see it: `#lobby 12 alice: hello`."""
    message = msgspec.json.decode(payload, type=dict[str, Raw])
    offset = str(message["offset"], "ascii") if "offset" in message else "-"
    sender = msgspec.json.decode(message["from"], type=str) if "from" in message else NOBODY
    data = bytes(message["data"])
    key = f"{visible(msgspec.json.decode(message['key'], type=str))} = " if "key" in message else ""
    return f"#{msgspec.json.decode(message['channel'], type=str)} {offset} {visible(sender)}: {key}{_shown(data)}\n"


def _shown(data: bytes) -> str:
    """A JSON value for people: a string as its text, all else as compact JSON."""
    if data.startswith(b'"'):
        return visible(msgspec.json.decode(data, type=str))
    return visible(msgspec.json.format(data, indent=-1).decode())


def join_console(payloads: Iterable[bytes]) -> bytes:
    """Messages as lines of text; the console's framing."""
    return "".join([message_line(payload) for payload in payloads]).encode()


class Console:
    """One person's conversation: where they are, and what their words mean.

    Where its `ok` is worth a line, a request has its command as id. Publishes have none: only their errors are shown.
    """

    def __init__(self) -> None:
        self.channel: str | None = FIRST_CHANNEL
        self._joining = FIRST_CHANNEL
        self._name = NOBODY
        self._begun = False

    def read(self, line: str) -> Iterator[Action]:
        """What one typed line asks for, in order; each is to be answered before the next is taken."""
        line = line.rstrip()
        actions = self._understand(line)
        if not self._begun:
            self._begun = True
            if self.channel == FIRST_CHANNEL and not any(isinstance(action, Subscribe | Quit) for action in actions):
                yield Subscribe(id=_BEGIN, channel=FIRST_CHANNEL)
                actions = self._understand(line)  # again: who was refused there is in no channel now
        yield from actions

    def _understand(self, line: str) -> list[Action]:
        if not line:
            return [Say(self._welcome())]
        if not line.startswith("/"):
            return self._publish(line)
        if line.startswith("//"):
            return self._publish(line[1:])
        command, _, rest = line.partition(" ")
        return self._command(command, rest.strip())

    def _welcome(self) -> str:
        where = f"You are in #{self.channel}." if self.channel else "You are in no channel."
        return f"Welcome to trisync. {where}\n{HELP}"

    def _publish(self, text: str) -> list[Action]:
        if self.channel is None:
            return [Say(_NOWHERE)]
        return [Publish(channel=self.channel, data=Raw(msgspec.json.encode(text)))]

    def _command(self, command: str, rest: str) -> list[Action]:
        if command == "/help":
            return [Say(HELP)]
        if command == "/join":
            return self._join(rest)
        if command == "/leave":
            return self._leave()
        if command == "/name":
            if not 1 <= len(rest) <= 64 or visible(rest) != rest:
                return [Say("! /name NAME: 1 to 64 printable characters\n")]
            self._name = rest
            return [Hello(id="/name", name=rest)]
        if command == "/history":
            return self._history(rest)
        if command in ("/set", "/get", "/who"):
            return [Say(_NOWHERE)] if self.channel is None else self._state(command, rest, self.channel)
        if command == "/json":
            return [GoOnInJson()]
        if command == "/quit":
            return [Say("Good-bye.\n"), Quit()]
        return [Say(f"! there is no command {visible(shortened(command, 40))}; /help shows those there are\n")]

    def _join(self, rest: str) -> list[Action]:
        name, _, count = rest.partition(" ")
        name = name.removeprefix("#")
        last = _count(count.strip()) if count else UNSET
        if not channel_is_valid(name):
            return [Say("! /join CHANNEL [N]: letters, digits and _ - . : / @ # = make a channel's name\n")]
        if last is None:
            return [Say(f"! /join CHANNEL [N]: N is 1 to {HISTORY_LIMIT_MAX}\n")]
        actions: list[Action] = []
        if self.channel is not None and self.channel != name:
            actions.append(Unsubscribe(channel=self.channel))
            self.channel = None
        self._joining = name
        return [*actions, Subscribe(id="/join", channel=name, last=last)]

    def _leave(self) -> list[Action]:
        if self.channel is None:
            return [Say("! you are in no channel\n")]
        channel, self.channel = self.channel, None
        return [Unsubscribe(id="/leave", channel=channel)]

    def _history(self, rest: str) -> list[Action]:
        limit = _count(rest) if rest else HISTORY_DEFAULT
        if limit is None:
            return [Say(f"! /history [N]: 1 to {HISTORY_LIMIT_MAX}\n")]
        if self.channel is None:
            return [Say(_NOWHERE)]
        return [History(id="/history", channel=self.channel, limit=limit)]

    def _state(self, command: str, rest: str, channel: str) -> list[Action]:
        if command == "/who":
            return [GetPresence(id="/who", channel=channel)]
        key, _, value = rest.partition(" ")
        if command == "/get" and not rest:
            return [GetState(id="/get", channel=channel)]
        if len(key.encode()) > KEY_BYTES_MAX or visible(key) != key or (command == "/set") != bool(value.strip()):
            return [Say(f"! /set KEY VALUE, /get [KEY]: a key is 1 to {KEY_BYTES_MAX} printable bytes, no spaces\n")]
        if command == "/get":
            return [GetState(id="/get", channel=channel, key=key)]
        try:
            return [compose_publish(value.strip().encode(), channel=channel, key=key)]
        except BadRequest:  # no JSON, so it is text
            return [compose_publish(msgspec.json.encode(value.strip()), channel=channel, key=key)]

    def render(self, payload: bytes) -> str:
        """What a person is shown of a message of the server that is not a `message`; may be nothing."""
        reply: dict[str, Any] = decode_data(payload)
        match reply["op"]:
            case "ok":
                return self._render_ok(payload, reply)
            case "error":
                if reply.get("id") == _BEGIN and self.channel == FIRST_CHANNEL:
                    self.channel = None
                nowhere = _NOW_NOWHERE if reply.get("id") in (_BEGIN, "/join") and self.channel is None else ""
                return f"! {visible(reply['message'])} ({reply['code']})\n{nowhere}"
            case "gap" if reply["reason"] == "trimmed":
                return f"* #{reply['channel']}: messages {reply['from']} to {reply['to']} are gone\n"
            case "gap":
                return f"* #{reply['channel']}: the log was replaced; it begins again\n"
            case "goodbye":
                return f"* the server is stopping; come back in {reply['reconnect_ms'] / 1000:.1f} s\n"
        return ""

    def _render_ok(self, payload: bytes, reply: dict[str, Any]) -> str:
        match reply.get("id"):
            case "/join":
                self.channel = self._joining
                return f"* you are in #{self.channel}, which is at {reply['offset']}\n"
            case "/leave":
                return _NOW_NOWHERE
            case "/name":
                return f"* you are {self._name}\n"
            case "/history":
                messages = msgspec.json.decode(payload, type=_HistoryReply).messages
                lines = "".join([message_line(bytes(message)) for message in messages]) or "* nothing yet\n"
                before = reply["messages"][0]["offset"] - 1 if messages else reply["offset"]
                gone = f"* messages 1 to {before} are gone\n" if before and before == reply.get("trimmed") else ""
                return gone + lines
            case "/get":
                entries = msgspec.json.decode(payload, type=_StateReply).entries
                lines = "".join([f"{visible(key)} = {_shown(bytes(entry.data))}\n" for key, entry in entries.items()])
                return (lines or "* nothing there\n") + ("* and more\n" if reply["more"] else "")
            case "/who":
                names = sorted(visible(member.get("name", NOBODY)) for member in reply["members"])
                return f"* here: {', '.join(names) or 'nobody'}{' and more' if reply['more'] else ''}\n"
        return ""


class _HistoryReply(msgspec.Struct):
    messages: list[Raw]


class _Entry(msgspec.Struct):
    data: Raw


class _StateReply(msgspec.Struct):
    entries: dict[str, _Entry]


def _count(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(HISTORY_LIMIT_MAX))):
        return None
    return int(text) if 1 <= int(text) <= HISTORY_LIMIT_MAX else None
