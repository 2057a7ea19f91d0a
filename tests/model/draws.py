"""What clients say, drawn at random: names that are hard to write, values that are hard to pass on, and wrong ones."""

import random
from dataclasses import replace
from typing import Any

from tests.model.model import REMEMBERED, TRIMMED_CHANNEL, Model, Publish, fault

CHANNELS = ("lobby", "a/b", "x#y", "c:1", "d=e@f", TRIMMED_CHANNEL)
BAD_CHANNELS = ("no space", "$x", "ü", "x" * 201, "a\nb")
KEYS = ("k", "ü/1", "a b", "%41", "k2", "z?#", "..", "\u2028", "𝒳", "+", 'q"', "k" * 512)
BAD_KEYS = ("", "a\nb", "é" * 257, "\x7f", "\x9f")
NAMES = ("ann", "böb", "x y", "\u202eevil", "é" * 64)
PRODUCERS = ("p" * 16, "q" * 20, "r~!" * 10)
DATA = (
    *('"hi"', "1.50", "1e400", "-0", "12345678901234567890123", "null", "true", '""', "[ ]", "[[[[[]]]]]"),
    *('{"a" : 1}', '{"b":1,"a":{"b":2}}', '{"a":1,"a":2}', "[1,\n 2]", "[" * 63 + "]" * 63),
    *('"\\u00e9\\ud83d\\ude00"', '"é😀"', '"\\u0000\\u001b[31m"', '"line\\nbreak"', '"/quit"', '" lead"'),
    '"{}"'.format("z" * 3000),
)
BAD_DATA = ('"\\ud800"', "NaN", "01", "{", "'x'", "[1,]", "[" * 64 + "]" * 64, "tru", "1 2", '"\t"')
PATCHES = (
    *("{}", '{"a":1}', '{"a":null}', '{"b":{"c":null,"d":[null]}}', '{"b":{"c":2}}', '{"a":{"x":{"y":null}}}'),
    *("5", '"s"', "[1]", "null", '{"\\u0061":7}', '{"": 0}'),
    # Two that together are more than a message may be.
    '{{"big":"{}"}}'.format("x" * 2500),
    '{{"more":"{}"}}'.format("y" * 3600),
)


def publish(chance: random.Random, model: Model) -> Publish:
    """A publish without a seq; some are wrong."""
    drawn = Publish(chance.choice(CHANNELS), chance.choice(DATA))
    if chance.random() < 0.55:
        drawn = _word(chance, model, replace(drawn, key=chance.choice(KEYS)))
    elif chance.random() < 0.1:
        drawn = replace(drawn, ephemeral=True)
    return replace(drawn, **_wrong(chance)) if chance.random() < 0.1 else drawn


def _word(chance: random.Random, model: Model, drawn: Publish) -> Publish:
    changes: dict[str, Any] = {}
    if chance.random() < 0.4:
        changes |= {"merge": True, "data": chance.choice(PATCHES)}
    elif chance.random() < 0.25:
        changes |= {"data": "null"}
    elif chance.random() < 0.05:
        changes |= {"merge": False}
    if chance.random() < 0.4:
        there = model.channel(drawn.channel).words.get(drawn.key or "")
        offset = (there and there.offset) or 0
        changes["expect"] = chance.choice([offset, offset, offset, 0, 1, 7, (1 << 53) - 1])
    return replace(drawn, **changes)


def _wrong(chance: random.Random) -> dict[str, Any]:
    choices: list[dict[str, Any]] = [
        {"channel": chance.choice(BAD_CHANNELS)},
        {"key": chance.choice(BAD_KEYS)},
        {"expect": chance.choice([-1, 1 << 53])},
        {"data": chance.choice(BAD_DATA)},
        {"merge": True},
        {"ephemeral": True},
    ]
    return chance.choice(choices)


def with_seq(chance: random.Random, model: Model, producer: str, drawn: Publish) -> Publish:
    """The publish as this producer's next one; or in its place one that it has sent, or with a number that is off."""
    known = model.producers.get(producer)
    settled = known.settled if known else 0
    if settled and chance.random() < 0.25:
        seq = chance.choice([settled, max(1, settled - chance.randrange(REMEMBERED + 50))])
        first = known.verdicts[seq].publish if known else drawn
        return first if chance.random() < 0.7 else replace(drawn, seq=seq)
    return replace(drawn, seq=settled + (2 if chance.random() < 0.1 else 1))


def publishes(chance: random.Random, model: Model, producer: str, count: int) -> list[Publish]:
    """The next publishes of a producer, none of which is without an answer that settles it."""
    known = model.producers.get(producer)
    drawn: list[Publish] = []
    while len(drawn) < count:
        next_one = replace(publish(chance, model), seq=(known.settled if known else 0) + len(drawn) + 1)
        if fault(next_one) != "bad_json":
            drawn.append(next_one)
    return drawn
