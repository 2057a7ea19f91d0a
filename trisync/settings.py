"""Every setting, with its default, its unit and its reason: the one place where they are.

The command line, the environment, the TOML file and the README's table are all made from this class or
checked against it. Reading them is the business of config.py.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from trisync.retention_rules import Rules
from trisync.wire.http_rules import require_origin

MIB = 1024 * 1024

KEEPALIVE_S_MAX = 32767
"""What Linux takes: MAX_TCP_KEEPIDLE of include/net/tcp.h."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=10**9)]
Count = Annotated[int, Meta(ge=1, le=2**40)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server can be told. Times are in seconds and sizes in bytes unless a name says otherwise."""

    # Where
    host: Annotated[
        str, Meta(min_length=1, description="Address to listen on; until there are tokens, keep it private")
    ] = "127.0.0.1"
    tcp_port: Annotated[Port, Meta(description="Port for netcat, telnet and raw TCP; 0 takes a free one")] = 2345
    web_port: Annotated[Port, Meta(description="Port for browsers: WebSocket and HTTP; 0 takes a free one")] = 8000
    data: Annotated[str, Meta(min_length=1, description="Folder of the SQLite file; made if it is not there")] = "data"
    origins: Annotated[
        list[str],
        Meta(description="Web origins beside the server's own that may connect, e.g. https://app.example"),
    ] = field(default_factory=list)

    # How durable
    durability: Annotated[
        Literal["full", "normal"],
        Meta(description="full: acknowledged is on disk; normal: a power cut may take the newest messages"),
    ] = "full"
    busy_ms: Annotated[
        int,
        Meta(ge=0, le=60_000, description="How long a commit waits for another program's lock on the file"),
    ] = 2000

    # What is kept
    retention: Annotated[
        list[str],
        Meta(
            description="What channels keep, such as 'chat.* messages=1000 age_s=86400 bytes=1000000'; "
            "of several the first that matches counts"
        ),
    ] = field(default_factory=list)
    retention_tick_s: Annotated[Seconds, Meta(description="How often channels are cut to what they keep")] = 1.0

    # Limits on what clients ask for
    message_bytes_max: Annotated[
        int,
        Meta(
            ge=1024,
            le=16 * MIB - 8192,
            description="Largest request; below 16 MiB, so that a frame begins with 00",
        ),
    ] = MIB
    connections_max: Annotated[
        Count, Meta(description="Clients at once; lowered to what the open-file limit allows")
    ] = 10_000
    subscriptions_max: Annotated[Count, Meta(description="Channels that one connection may be subscribed to")] = 1000
    keys_max: Annotated[Count, Meta(description="Keys in the state of one channel")] = 1_000_000
    silent_max: Annotated[
        Count,
        Meta(description="TCP connections that have said nothing; past it the oldest of them is closed"),
    ] = 1000

    # Limits on memory
    backlog_bytes_max: Annotated[
        Count,
        Meta(description="Unsent bytes of a connection; past it, it reads on from the log at its own speed"),
    ] = MIB
    queue_bytes_max: Annotated[
        Count, Meta(description="Publishes waiting for the disk; past it, publishers are not read from")
    ] = 16 * MIB
    batch_bytes_max: Annotated[Count, Meta(description="Publishes committed in one transaction, in bytes")] = 4 * MIB
    batch_messages_max: Annotated[
        Count,
        Meta(
            description="Publishes committed in one transaction, half as many where several clients publish: "
            "bounds how long one holds the others up"
        ),
    ] = 1024
    cache_bytes_max: Annotated[Count, Meta(description="Recent messages kept encoded in memory")] = 64 * MIB
    cache_ttl_s: Annotated[Seconds, Meta(description="How long a channel's tail, head or producer is cached")] = 300.0
    cached_heads_max: Annotated[Count, Meta(description="Channels whose head is cached: up to 1 kB each")] = 100_000
    producer_cache_bytes_max: Annotated[
        Count,
        Meta(description="Producers' newest answers kept in memory: some 11 kB of a producer that has 256 of them"),
    ] = 32 * MIB

    # Deadlines
    silent_s: Annotated[
        Seconds,
        Meta(description="How long a TCP connection may say nothing at first: a person may just be looking"),
    ] = 300.0
    handshake_s: Annotated[Seconds, Meta(description="For a whole HTTP request head or WebSocket handshake")] = 10.0
    half_message_s: Annotated[
        Seconds, Meta(description="For the rest of a message that has begun, and again for each 64 KiB of it")
    ] = 10.0
    http_idle_s: Annotated[Seconds, Meta(description="How long an HTTP connection may wait for its next request")] = (
        60.0
    )
    ping_s: Annotated[Seconds, Meta(description="WebSocket clients that said nothing for so long are pinged")] = 25.0
    pong_s: Annotated[Seconds, Meta(description="A pinged WebSocket client that stays silent for so long is gone")] = (
        10.0
    )
    heartbeat_s: Annotated[
        Seconds,
        Meta(description="How often clients of server-sent events are sent a comment, to show that they are alive"),
    ] = 15.0
    tcp_keepalive_s: Annotated[
        float, Meta(gt=0, le=KEEPALIVE_S_MAX, description="Idle time before TCP keep-alive probes begin")
    ] = 60.0
    peer_timeout_s: Annotated[
        Seconds, Meta(description="A peer that acknowledges nothing for so long, though sent to, is gone")
    ] = 30.0
    producer_idle_s: Annotated[
        Seconds, Meta(description="Producers that published nothing for so long are forgotten")
    ] = 30 * 86400.0

    # Presence
    presence_grace_s: Annotated[
        float,
        Meta(ge=0, le=10**9, description="How long a producer whose connection ended is still shown: it may come back"),
    ] = 3.0
    presence_tick_s: Annotated[
        Seconds, Meta(description="Joins and leaves are told together every so often, so that a crowd is no storm")
    ] = 0.1

    # Hooks of a program that embeds the server
    hook_s: Annotated[Seconds, Meta(description="How long a hook may take for one request")] = 5.0

    # Stopping
    drain_s: Annotated[Seconds, Meta(description="At a stop, how long clients may take to receive what is theirs")] = (
        10.0
    )
    linger_s: Annotated[Seconds, Meta(description="At a close, how long the client may take to hang up first")] = 1.0
    reconnect_spread_ms: Annotated[
        Count, Meta(description="At a stop, clients are told to return spread over so many milliseconds")
    ] = 5000

    # Telling
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="What is said on standard error, at the least: debug, info, warning or error"),
    ] = "info"

    def __post_init__(self) -> None:
        try:
            for origin in self.origins:
                require_origin(origin)
        except ValueError as error:
            raise ValueError(f"origins: {error}") from None
        try:
            Rules(self.retention)
        except ValueError as error:
            raise ValueError(f"retention: {error}") from None
