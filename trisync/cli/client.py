"""The commands that talk to a server: publish, subscribe, history, state, delete."""

import errno
import json
import logging
import os
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from http.client import HTTPException, InvalidURL
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import click
import msgspec
import trio

from trisync.cli.errors import in_words
from trisync.client import DEFAULT_URL, Client, ClientError, Message, NotConnected, Receipt, State, connect
from trisync.client.wire import check_channel
from trisync.wire.protocol import HISTORY_LIMIT_DEFAULT, HISTORY_LIMIT_MAX

T = TypeVar("T")

ANSWER_S = 30.0
"""How long the answer to one request may take: a server that is started again has answered by then."""

_COUNT = click.IntRange(1, HISTORY_LIMIT_MAX)

_url_option = click.option(
    "--url",
    default=DEFAULT_URL,
    envvar="TRISYNC_URL",
    show_default=True,
    help="The server: tcp://, or ws:// for its web door; tcps:// or wss:// with TLS.",
)


def _run(url: str, talk: Callable[[Client], Awaitable[None]], name: str | None = None) -> None:
    """Run a client command on a connection; what goes wrong is one line for a person, and exit status 1."""

    async def connected() -> None:
        async with connect(url, name=name, wait_s=0) as client:
            await talk(client)

    # That a connection was lost and is back is said on standard error; meanwhile the command waits.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        # Ctrl-C then comes where the command waits, not in the middle of what the client or Trio is doing.
        trio.run(connected, restrict_keyboard_interrupt_to_checkpoints=True)
    except (ClientError, OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.EPIPE, errno.ENOSPC):
            raise  # of standard output: click ends a command quietly whose output `head` closes, main() says the other
        raise click.ClickException(in_words(error)) from None


async def _answer(client: Client, asked: Awaitable[T]) -> T:
    """Wait for the answer to the one thing that a command asks. Raises NotConnected where none comes in time."""
    with trio.move_on_after(ANSWER_S):
        return await asked
    why = "" if client.status.state is State.ONLINE else f": {client.status.reason}"
    raise NotConnected(f"no answer within {ANSWER_S:g} s{why}")


def _as_data(text: str) -> object:
    """JSON as it is, and any other text as a string of JSON. Raises ValueError."""
    try:
        return msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return text
    except UnicodeEncodeError:
        raise ValueError("the data is not UTF-8") from None
    except RecursionError:
        raise ValueError("the data is nested too deep") from None


_UNESCAPED_CONTROLS = re.compile(rb"\x7f|\xc2[\x80-\x9f]")
"""The controls that JSON need not escape (RFC 8259, section 7), as UTF-8. To many a terminal U+009B is ESC and [."""


def _print_json(json: bytes) -> None:
    """Print JSON that others have written, as the same JSON without any control in it."""
    click.echo(_UNESCAPED_CONTROLS.sub(lambda control: b"\\u%04x" % ord(control[0].decode()), json))


@click.command("publish")
@click.argument("channel")
@click.argument("data", required=False)
@click.option("--name", help="Who says it.")
@click.option("--key", help="Set this key of the channel's state to it; null deletes the key.")
@click.option(
    "--expect",
    metavar="OFFSET",
    type=click.IntRange(min=0),
    help="Only if the key's newest word has this offset; 0: only if there is no such key.",
)
@_url_option
def publish_command(
    channel: str, data: str | None, name: str | None, key: str | None, expect: int | None, url: str
) -> None:
    """Publish DATA to CHANNEL, and print the offset it got.

    It is printed once the message is on the server's disk. DATA is JSON, or else text. Without it, every line of
    standard input is published.

    \b
      trisync publish lobby '{"text": "hello"}'
      trisync publish lobby hello --name alice
      trisync publish lamp on --key kitchen
      trisync publish room --key celsius -- -5
      dmesg | trisync publish logs
    """

    if data is None and sys.stdin is None:
        raise click.UsageError("there is no DATA, and standard input is closed")
    if data is None and expect is not None:
        raise click.UsageError("--expect is for one message, with DATA")

    async def talk(client: Client) -> None:
        if data is not None:
            publish = client.publish(channel, _as_data(data), key=key, expect=expect)
            click.echo(await _answer(client, publish))
            return
        async with aclosing(_lines_of_input()) as chunks:
            async for first, lines in chunks:
                await _publish_lines(client, channel, key, first, lines)

    _run(url, talk, name)


async def _publish_lines(client: Client, channel: str, key: str | None, first: int, lines: list[str]) -> None:
    """Publish lines of the input, `first` the number of the first, and print their offsets.

    Raises ValueError for the first that is refused, once all that were sent have their answers.
    """
    problems: dict[int, Exception] = {}
    receipts: list[Receipt] = []
    for number, line in enumerate(lines, start=first):
        await client.room()
        try:
            receipts.append(client.post(channel, _as_data(line), key=key))
        except (ClientError, ValueError) as error:
            problems[number] = error
            break
    for number, receipt in enumerate(receipts, start=first):
        try:
            _print_offset(await receipt)
        except ClientError as error:
            problems[number] = error
    if problems:
        number = min(problems)
        raise ValueError(f"line {number} of the input: {in_words(problems[number])}")


def _print_offset(offset: int) -> None:
    """Print it. Where nobody reads that any more, as `head` does not, the input is to be published all the same."""
    try:
        click.echo(offset)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


async def _lines_of_input() -> AsyncGenerator[tuple[int, list[str]], None]:
    """The lines of standard input, as many together as there are at a time, with the number of the first.

    Raises ValueError for one that is no UTF-8, once those before it were taken.
    """
    chunk, rest, count = b"\n", b"", 0
    while chunk:
        chunk = await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 1 << 16, abandon_on_cancel=True)
        *lines, rest = (rest + chunk).split(b"\n")
        if rest and not chunk:
            lines = [rest]
        readable = _decoded(lines)
        yield count + 1, readable
        count += len(readable)
        if len(readable) < len(lines):
            raise ValueError(f"line {count + 1} of the input is not UTF-8")


def _decoded(lines: list[bytes]) -> list[str]:
    """The lines, ended by LF or CRLF, up to the first that is no UTF-8."""
    decoded: list[str] = []
    for line in lines:
        try:
            decoded.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            break
    return decoded


@click.command("subscribe")
@click.argument("channel")
@click.option("--since", type=click.IntRange(min=0), help="Begin behind this offset.")
@click.option("--last", type=_COUNT, help="Begin with the last N messages.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@_url_option
def subscribe_command(channel: str, since: int | None, last: int | None, count: int | None, url: str) -> None:
    """Print what is published to CHANNEL, until Ctrl-C.

    It is printed as one JSON object a line.

    \b
      trisync subscribe lobby --last 10
      trisync subscribe lobby --since 0 | jq .data
    """

    if since is not None and last is not None:
        raise click.UsageError("--since and --last do not go together")

    async def talk(client: Client) -> None:
        async with client.subscribe(channel, since=since, last=last, gaps="yield") as messages:
            left = -1 if count is None else count
            async for item in messages:
                _print_json(item.to_json())
                left -= isinstance(item, Message)
                if not left:
                    break

    _run(url, talk)


@click.command("history")
@click.argument("channel")
@click.option("--since", type=click.IntRange(min=0), help="Begin behind this offset; else the newest are shown.")
@click.option("--limit", type=_COUNT, default=HISTORY_LIMIT_DEFAULT, show_default=True, help="How many messages.")
@_url_option
def history_command(channel: str, since: int | None, limit: int, url: str) -> None:
    """Print stored messages of CHANNEL, oldest first.

    They are printed as one JSON object a line.

    \b
      trisync history lobby
      trisync history lobby --since 1000 --limit 500
    """

    async def talk(client: Client) -> None:
        page = await _answer(client, client.history(channel, since=since, limit=limit))
        if page.gap is not None:
            _print_json(page.gap.to_json())
        for message in page.messages:
            _print_json(message.to_json())

    _run(url, talk)


@click.command("state")
@click.argument("channel")
@click.argument("key", required=False)
@_url_option
def state_command(channel: str, key: str | None, url: str) -> None:
    """Print the state of CHANNEL: the newest word on each key.

    It is printed as one JSON object a line; or of KEY alone, its data.

    \b
      trisync state lamp
      trisync state lamp kitchen
    """

    async def talk(client: Client) -> None:
        if key is None:
            words = await _answer(client, client.words(channel))
            for name, word in words.items():
                _print_json(msgspec.json.encode({"key": name, "offset": word.offset, "data": word.json}))
            return
        found = await _answer(client, client.word(channel, key))
        if found is None:
            raise click.ClickException(f"there is no key {key!r} in {channel}")
        _print_json(bytes(found.json))

    _run(url, talk)


@click.command("delete")
@click.argument("channel")
@click.option(
    "--web",
    metavar="URL",
    default="http://localhost:8000",
    envvar="TRISYNC_WEB",
    show_default=True,
    help="The server's web door.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_command(channel: str, web: str, yes: bool) -> None:
    """Empty CHANNEL of its messages and its state, for good. It asks first, unless --yes says so already.

    Whoever is subscribed is told which messages are gone. Offsets go on from where they were.

    \b
      trisync delete lobby
    """
    if not web.startswith(("http://", "https://")):
        raise click.UsageError(f"--web is the address of a web door, such as http://localhost:8000, not {web!r}")
    try:
        check_channel(channel)
    except ClientError as error:
        raise click.ClickException(in_words(error)) from None
    if not yes:
        if sys.stdin is None:
            raise click.UsageError("standard input is closed, so nobody can be asked; --yes deletes without")
        click.confirm(f"Delete all messages and the state of {channel}?", abort=True)
    offset = _empty(web, channel)
    click.echo(f"{channel} is empty; its offsets go on behind {offset}")


def _empty(web: str, channel: str) -> int:
    """Have a web door empty a channel; returns the offset behind which it goes on. Raises click.ClickException."""
    try:
        request = Request(f"{web.rstrip('/')}/channels/{quote(channel, safe='')}", method="DELETE")
        if not request.selector.isascii():
            raise click.ClickException(f"{web}: the path is ASCII, and all else percent-encoded")
        with urlopen(request, timeout=ANSWER_S) as response:
            answer = response.read()
    except HTTPError as error:
        raise click.ClickException(_reason(error)) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{web}: {in_words(getattr(error, 'reason', error))}") from None
    except InvalidURL as error:
        raise click.ClickException(f"{web}: {error}") from None
    except HTTPException:
        raise click.ClickException(f"{web}: no whole HTTP response came") from None
    try:
        return int(json.loads(answer)["offset"])
    except (ValueError, KeyError, TypeError):
        raise click.ClickException(f"{web}: what is there is no web door of trisync") from None


def _reason(error: HTTPError) -> str:
    """What the server said, or else the status."""
    try:
        return str(json.load(error)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.url}: {error.code} {error.reason}"
