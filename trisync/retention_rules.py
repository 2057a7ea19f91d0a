"""What channels keep: the rules that the setting `retention` is made of. Sans-IO.

Cutting what is over is the business of retention.py; here a rule's text becomes limits, and a channel finds its own.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from trisync.patterns import compile_pattern

CHANNELS_REMEMBERED = 10_000
"""Channels whose rule is kept: finding it anew costs one match a rule."""

LIMIT_MAX = 2**53 - 1


class Limits(NamedTuple):
    """How much a channel may hold; None is without limit. Its oldest messages go first."""

    messages: int | None = None
    age_ms: int | None = None
    bytes: int | None = None
    """Of its messages as they are sent, in lines; not of the file."""


class Rule(NamedTuple):
    """Limits for the channels that a pattern matches."""

    matches: Callable[[str], bool]
    limits: Limits


def parse_rule(text: str) -> Rule:
    """A rule such as `chat.* messages=1000 age_s=86400 bytes=1000000`. Raises ValueError, which says what is wrong."""
    pattern, *words = text.split() or [""]
    given: dict[str, int] = {}
    for word in words:
        name, equals, number = word.partition("=")
        if name not in ("messages", "age_s", "bytes") or not equals or name in given:
            raise ValueError(f"{text!r}: after the pattern come messages=N, age_s=N and bytes=N, each once")
        if not (number.isascii() and number.isdigit() and 1 <= int(number) <= LIMIT_MAX):
            raise ValueError(f"{text!r}: {name} is a whole number from 1 on")
        given[name] = int(number)
    if not given:
        raise ValueError(f"{text!r}: a rule is a pattern and at least one of messages=N, age_s=N, bytes=N")
    age_s = given.get("age_s")
    limits = Limits(given.get("messages"), None if age_s is None else age_s * 1000, given.get("bytes"))
    return Rule(compile_pattern(pattern), limits)


class Rules:
    """Rules in their order: for each channel the first one that matches counts."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises ValueError for what is no rule."""
        rules = [parse_rule(text) for text in texts]
        for place, text in enumerate(texts):
            for earlier, rule in zip(texts[:place], rules, strict=False):
                if rule.matches(text.split()[0]):  # whatever its stars stand for
                    raise ValueError(
                        f"{text!r}: never used, as {earlier!r} comes before it and is for all its channels"
                    )

        @lru_cache(CHANNELS_REMEMBERED)
        def limits(channel: str) -> Limits | None:
            return next((rule.limits for rule in rules if rule.matches(channel)), None)

        self.limits = limits
        """A channel's limits, None where it keeps everything."""
        self.by_age = any(rule.limits.age_ms is not None for rule in rules)
        """Whether time alone can bring a channel over its limits."""

    def outgrown(self, channel: str) -> bool:
        """Whether a publish can bring the channel over its limits."""
        limits = self.limits(channel)
        return limits is not None and (limits.messages is not None or limits.bytes is not None)
