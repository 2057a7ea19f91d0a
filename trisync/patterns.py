"""Patterns of channel names, as settings and hooks use them: `*` stands for any run of characters, also none."""

import re
from collections.abc import Callable

from trisync.wire.protocol import channel_is_valid


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """What tells whether a channel's name matches. Raises ValueError where no channel's name ever could."""
    if not channel_is_valid(pattern.replace("*", "") or "x" * pattern.count("*")):
        raise ValueError(f"{pattern!r} is no pattern of channel names: letters, digits, _ - . : / @ # = and *")
    matches = re.compile(".*".join(re.escape(part) for part in pattern.split("*"))).fullmatch
    return lambda name: matches(name) is not None
