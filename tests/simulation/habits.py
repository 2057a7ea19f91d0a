"""What a world is drawn from: the clients' habits, the network's weather, the server's settings."""

import random
from typing import NamedTuple

from tests.simulation.following import Wish
from tests.simulation.links import Weather
from tests.simulation.wire import Dialect
from trisync.settings import Settings

PLAIN = ["lobby", "news", "cut/a"]
KEYED = ["doc", "cut/doc"]


class Habits(NamedTuple):
    """What a device is like."""

    name: str
    dialect: Dialect
    producer: str | None
    wishes: list[Wish]
    plain: list[str]
    """Channels that it publishes to."""
    keyed: list[str]
    """Channels whose keys it writes."""
    publishes: int
    pace_s: float
    window: int
    """How many publishes it has unanswered at most."""
    data_bytes_max: int
    deaf_s: float
    """How long it may look away between two reads."""
    restless: float
    """How often, between two publishes, it does something else."""


def draw_weather(source: random.Random) -> Weather:
    """A network for rough times."""
    return Weather(
        latency_s_max=source.choice((0.0, 0.01, 0.3)),
        jitter_s_max=source.choice((0.0, 0.01, 0.2)),
        window_bytes=source.choice(((65536,), (1024, 65536), (300, 1024, 4096))),
        torn=source.choice((0.0, 0.3, 1.0)),
    )


def draw_settings(source: random.Random) -> Settings:
    """Settings with small bounds, so that they are met."""
    return Settings(
        retention=[source.choice(("cut/a age_s=5", "cut/a messages=3")), f"cut/* messages={source.choice((1, 5, 30))}"],
        batch_messages_max=source.choice((1, 3, 4096)),
        queue_bytes_max=source.choice((2000, 16 << 20)),
        durability=source.choice(("full", "full", "normal")),
        backlog_bytes_max=source.choice((500, 4000, 1 << 20)),
        cache_bytes_max=source.choice((1, 5000, 1 << 20)),
        cache_ttl_s=source.choice((1.0, 300.0)),
        cached_heads_max=(caches := source.choice(((1, 1), (3, 3000), (1000, 1_000_000))))[0],
        producer_cache_bytes_max=caches[1],
        message_bytes_max=source.choice((4096, 1 << 20)),
        presence_grace_s=source.choice((0.0, 3.0)),
        retention_tick_s=2.0,
        peer_timeout_s=10.0,
        ping_s=10.0,
        pong_s=5.0,
        drain_s=source.choice((0.5, 5.0)),
        linger_s=0.2,
    )


def draw_devices(source: random.Random, settings: Settings) -> list[Habits]:
    """A few clients, each with its own habits."""
    return [draw_habits(source, f"d{number}", settings) for number in range(source.randint(2, 7))]


def draw_habits(source: random.Random, name: str, settings: Settings) -> Habits:
    """What one client is like."""
    wishes = [
        Wish(
            channel,
            source.choice(("start", "head", "last")),
            state=channel in KEYED and source.random() < 0.7,
            presence=source.random() < 0.3,
        )
        for channel in source.sample([*PLAIN, *KEYED], source.randint(0, 4))
    ]
    return Habits(
        name=name,
        dialect=source.choice(("lines", "frames", "ws")),
        producer=f"producer-{name}-{source.getrandbits(64):016x}" if source.random() < 0.5 else None,
        wishes=wishes,
        plain=source.sample(PLAIN, source.randint(1, 3)),
        keyed=source.sample(KEYED, source.randint(0, 2)),
        publishes=source.choice((0, 5, 20, 60)) if wishes else source.choice((5, 20, 60)),
        pace_s=source.choice((0.0, 0.3, 2.0)),
        window=source.choice((1, 5, 30, 256)),
        data_bytes_max=source.choice((50, 1000)),
        deaf_s=source.choice((0.0, 0.0, 0.0, 1.0)),
        restless=source.choice((0.0, 0.05, 0.3)),
    )
