"""The HTTP interface: each call is an operation of the wire, judged and answered as over the other doors.

Calls come understood (http_routes.py) and with their body; bytes, deadlines and streams are the business of
http_calls.py. No call leaves anything behind but what it stored.
"""

from hashlib import sha256
from typing import NamedTuple

import msgspec
import trio
from msgspec import UNSET, Raw, Struct

from trisync.core.broker import Broker
from trisync.sessions.connection import Connection
from trisync.sessions.hooks import Hooks
from trisync.sessions.reading import read_history, read_state
from trisync.sessions.session import Session
from trisync.settings import Settings
from trisync.storage.log import ChannelInfo, Duplicate, Once, Refused, Submission
from trisync.wire.errors import WireError
from trisync.wire.event_stream import epoch_mark, position
from trisync.wire.framing import events
from trisync.wire.http_answers import EVENT_STREAM, Answer, HttpError, etag, ok, refused
from trisync.wire.http_routes import (
    ROOT,
    Call,
    Condition,
    Resource,
    idempotency_key,
    is_expected,
    is_known,
    last_event_id,
    read_condition,
)
from trisync.wire.http_rules import Headers, header
from trisync.wire.protocol import (
    HISTORY_LIMIT_DEFAULT,
    HISTORY_LIMIT_MAX,
    BadRequest,
    GetState,
    History,
    Publish,
    Subscribe,
    compose_publish,
)
from trisync.wire.replies import encode_reply

SWAPS_MAX = 100
"""Tries to write a key that is only asked to exist, while others keep writing it: each loses only to a commit."""

_NULL = b"null"


class _Word(Struct):
    offset: int
    data: Raw


class _Stored(NamedTuple):
    """What became of a publish."""

    verdict: int | Duplicate
    data: bytes
    """What the program's hooks have made of it, where they did not refuse a repetition."""

    @property
    def offset(self) -> int:
        return self.verdict.offset if isinstance(self.verdict, Duplicate) else self.verdict

    def answer(self, status: int, *headers: tuple[bytes, bytes]) -> Answer:
        """The answer to a write; to a repeated one it is the same but for `duplicate`."""
        repeated = {"duplicate": True} if isinstance(self.verdict, Duplicate) else {}
        return ok(status, *headers, offset=self.offset, **repeated)


_decode_words = msgspec.json.Decoder(dict[str, _Word]).decode


class HttpSession(Session):
    """One client's calls, one after the other. What is promised of any Session holds.

    The methods raise HttpError, WireError and LogUnavailable where a call is refused. Cancelled, a write is stored or
    not.
    """

    __slots__ = ("body", "calling", "leaving")

    def __init__(self, broker: Broker, connection: Connection, settings: Settings, hooks: Hooks) -> None:
        super().__init__(broker, connection, settings, hooks, "http")
        self.calling = False
        """Whether a call is under way, which is still to be answered when the server stops."""
        self.body: trio.CancelScope | None = None
        """Around the waiting for a body, which is not waited for when the server stops."""
        self.leaving = False
        """Whether goodbye() was called."""

    def goodbye(self) -> None:
        self.leaving = True
        if not self.calling:
            super().goodbye()
        elif self.body is not None:
            self.body.cancel()

    async def answer(self, call: Call, headers: Headers, body: bytes) -> Answer:
        """What a call is answered with."""
        own_name = self._name
        if call.name is None:
            return await self._answer_call(call, headers, body)
        self._appear_as(call.name)
        try:
            return await self._answer_call(call, headers, body)
        finally:
            if self._name == call.name:  # else the program's hooks have given it another
                self._appear_as(own_name)

    async def _answer_call(self, call: Call, headers: Headers, body: bytes) -> Answer:
        match call.resource, call.method:
            case Resource.CHANNELS, _:
                return await self._list(call)
            case Resource.CHANNEL, _:
                return await self._clear(call)
            case Resource.MESSAGES, "GET":
                history = call.request(History)
                await self._judge_reading(history)
                return Answer(200, await read_history(self._broker, history))
            case Resource.MESSAGES, _:
                return await self._publish(call, headers, body)
            case Resource.STATE, _:
                state = call.request(GetState)
                await self._judge_reading(state)
                return Answer(200, await read_state(self._broker, state))
            case Resource.KEY, "GET":
                return await self._get_word(call, headers)
            case Resource.KEY, _:
                return await self._set_word(call, headers, body)
            case _:  # HEAD, to see whether there would be events
                await self._judge_reading(_subscription(call, headers))
                return Answer(200, content_type=EVENT_STREAM)

    async def follow(self, call: Call, headers: Headers, head: bytes) -> None:
        """Subscribe as events; `head`, the head of the response, is written when nothing can be refused any more."""
        if call.name is not None:
            self._appear_as(call.name)
        request = _subscription(call, headers)
        await self._judge_reading(request)
        channel = await self._broker.enter(request.channel, request.since)
        try:
            # From here on nothing waits: the offset that is told is the one where the subscription begins.
            self._connection.outbox.write(head)
            epoch = self._broker.epoch
            mark = b"" if request.epoch is UNSET else epoch_mark(epoch)
            self.speak(events(mark))
            if request.since is UNSET:
                last = 0 if request.last is UNSET else request.last
                self._connection.outbox.write(position(max(channel.head - last, channel.gone), mark))
            who = {"member": self._member()} if request.presence else {}
            self._connection.reply(encode_reply("ok", UNSET, offset=channel.head, epoch=epoch, **who))
            await self._subscribe(request)
        finally:
            self._broker.leave(channel)

    # Channels

    async def _list(self, call: Call) -> Answer:
        """A page of the channels, without those that the program's hooks keep from this client."""
        limit = call.query.get("limit", HISTORY_LIMIT_DEFAULT)
        if not 1 <= limit <= HISTORY_LIMIT_MAX:
            raise WireError("bad_request", f"limit is 1 to {HISTORY_LIMIT_MAX}")
        after = str(call.query.get("after", ""))
        shown: list[dict[str, str | int]] = []
        size = 0
        for info in await self._visible_channels(after, limit + 1):
            size += len(info.name) + 100  # what the largest numbers take, and the members' names
            if len(shown) == limit or (shown and size > self._settings.message_bytes_max):
                return ok(channels=shown, after=after, more=True, epoch=self._broker.epoch)
            after = info.name
            shown.append(_describe(info))
        return ok(channels=shown, after=after, more=False, epoch=self._broker.epoch)

    async def _visible_channels(self, after: str, count: int) -> list[ChannelInfo]:
        """The next so many channels that this client may read, fewer at the end of the list.

        The others are passed over, however many: a page that ended at one of them would tell its name.
        """
        visible: list[ChannelInfo] = []
        page = count
        while infos := await self._broker.channels(after, page):
            for info in infos:
                if await self._may_read(info.name):
                    visible.append(info)
                    if len(visible) == count:
                        return visible
            if len(infos) < page:
                break
            after, page = infos[-1].name, HISTORY_LIMIT_MAX
        return visible

    async def _may_read(self, channel: str) -> bool:
        try:
            await self._judge_reading(Subscribe(channel=channel))
        except WireError:
            return False
        return True

    async def _clear(self, call: Call) -> Answer:
        """Empty a channel. The hooks are asked as about a message of `null`."""
        judged = await self._judge_publish(_compose(_NULL, **call.fields))
        if isinstance(judged, Refused):
            raise judged.error
        extent = await self._broker.clear(call.channel)
        return ok(offset=extent.head)

    # Publishing

    async def _publish(self, call: Call, headers: Headers, body: bytes) -> Answer:
        request = _compose(body, **call.fields)
        once = _once(call, headers, body)
        if request.ephemeral:
            await self._store(request, None)
            return ok(202)
        stored = await self._store(request, once)
        name = call.channel.replace("/", "%2F").replace("#", "%23")
        location = f"{ROOT.decode()}/{name}/messages?since={stored.offset - 1}&limit=1"
        return stored.answer(201, (b"Location", location.encode()))

    async def _judge_publish(self, request: Publish) -> Publish | Refused:
        if self._publish_hooks is None or not self._publish_hooks(request.channel):
            return request
        return await self._hooks.judge_publish(self._meet_client(), request)

    async def _store(self, request: Publish, once: Once | None) -> _Stored:
        item = await self._judge_publish(request)
        if isinstance(item, Refused) and once is None:
            raise item.error  # with an Idempotency-Key it may be stored already, whatever the hooks say now
        await self._room()
        settled = trio.Event()
        submission = Submission(lambda submission: settled.set(), self._name, once=once, flow=self._own_flow())
        data = bytes(request.data if isinstance(item, Refused) else item.data)
        submission.add(item, len(data))
        self._broker.submit(submission)
        await settled.wait()
        [verdict] = submission.verdicts
        if isinstance(verdict, WireError):
            if verdict.details.pop("reused", False):
                raise HttpError(refused(verdict, 422))
            raise verdict
        return _Stored(verdict, data)

    # Keys

    async def _get_word(self, call: Call, headers: Headers) -> Answer:
        await self._judge_reading(call.request(GetState))
        word = await self._word(call)
        if word is None:
            raise WireError("not_found", "there is no such key")
        if not is_expected(headers, word.offset):
            problem = f"the key's newest offset is {word.offset}"
            error = WireError("conflict", problem, offset=word.offset, data=word.data)
            raise HttpError(refused(error, 412, (etag(word.offset),)))
        if is_known(headers, word.offset):
            return Answer(304, headers=(etag(word.offset),))
        return Answer(200, bytes(word.data), (etag(word.offset),))

    async def _word(self, call: Call) -> _Word | None:
        page = await self._broker.word(call.channel, str(call.key))
        return _decode_words(b"{%b}" % page.entries).get(str(call.key))

    async def _set_word(self, call: Call, headers: Headers, body: bytes) -> Answer:
        condition = read_condition(headers)
        once = _once(call, headers, body)
        data = _NULL if call.method == "DELETE" else body
        request = _compose(data, **call.fields, merge=call.method == "PATCH")
        try:
            if condition is Condition.EXISTS:
                stored = await self._swap(call, request)
            else:
                request.expect = UNSET if condition is None else condition
                stored = await self._store(request, once)
        except WireError as error:
            if error.code != "conflict":
                raise
            offset = error.details["offset"]
            raise HttpError(refused(error, 412, (etag(offset),) if offset else ())) from None
        if stored.data == _NULL:
            return stored.answer(200)  # without an ETag: it is If-None-Match: * that fits now
        return stored.answer(201 if condition == 0 else 200, etag(stored.offset))

    async def _swap(self, call: Call, request: Publish) -> _Stored:
        """Write a key if it is there, whatever it holds. Raises WireError `conflict` if not."""
        for _ in range(SWAPS_MAX):
            word = await self._word(call)
            if word is None:
                raise WireError("conflict", "there is no such key", offset=0, data=None)
            request.expect = word.offset
            try:
                return await self._store(request, None)
            except WireError as error:
                if error.code != "conflict":
                    raise
        raise WireError("unavailable", "others keep writing this key; nothing was stored")


def _describe(info: ChannelInfo) -> dict[str, str | int]:
    return {
        "channel": info.name,
        "offset": info.extent.head,
        "trimmed": info.extent.trimmed,
        "bytes": info.bytes,
    }


def _subscription(call: Call, headers: Headers) -> Subscribe:
    """What events are asked for: a client that returns has said where it is by Last-Event-ID."""
    place = last_event_id(headers)
    if place:
        query = {name: value for name, value in call.query.items() if name != "last"}
        call = call._replace(query=query | place)
    return call.request(Subscribe)


def _compose(data: bytes, **fields: object) -> Publish:
    try:
        return compose_publish(data, **fields)
    except BadRequest as bad:
        raise bad.error from None


def _once(call: Call, headers: Headers, body: bytes) -> Once | None:
    """What an Idempotency-Key is remembered by; None without one."""
    key = idempotency_key(headers)
    if key is None:
        return None
    conditions = [(header(headers, name) or b"").decode("latin-1") for name in (b"if-match", b"if-none-match")]
    said = msgspec.json.encode([call.method, call.key, sorted(call.query.items()), conditions])
    return Once(sha256(call.channel.encode() + b"\n" + key).digest(), sha256(said + body).digest())
