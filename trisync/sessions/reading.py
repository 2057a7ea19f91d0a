"""What is read there and then: a page of a channel's messages, state or members, in the `ok` that answers."""

from msgspec import UNSET

from trisync.core.broker import Broker
from trisync.wire.protocol import GetPresence, GetState, History
from trisync.wire.replies import encode_reply


async def read_history(broker: Broker, request: History) -> bytes:
    """The `ok` with a page of a channel's messages. Raises LogUnavailable."""
    since = None if request.since is UNSET else request.since
    page = await broker.history(request.channel, since, request.limit)
    head, trimmed = page.extent
    messages = [] if page.run is None else page.run.payloads()
    more = page.run is not None and page.run.last < head
    envelope = encode_reply("ok", request.id, offset=head, trimmed=trimmed, epoch=broker.epoch, more=more)
    return envelope[:-1] + b',"messages":[' + b",".join(messages) + b"]}"


async def read_state(broker: Broker, request: GetState) -> bytes:
    """The `ok` with a page of a channel's state, or with one entry of it. Raises LogUnavailable."""
    if request.key is not UNSET:
        page = await broker.word(request.channel, request.key)
    else:
        page = await broker.state(request.channel, "" if request.after is UNSET else request.after)
    envelope = encode_reply("ok", request.id, offset=page.extent.head, epoch=broker.epoch, more=page.more)
    return envelope[:-1] + b',"entries":{' + page.entries + b"}}"


def read_members(broker: Broker, request: GetPresence, bytes_max: int) -> bytes:
    """The `ok` with a page of who is in a channel."""
    after = "" if request.after is UNSET else request.after
    members, more = broker.presence.members(request.channel, after, bytes_max)
    return encode_reply("ok", request.id, more=more)[:-1] + b',"members":' + members + b"}"
