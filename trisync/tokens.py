"""Tokens: what must not be guessed, or must differ from run to run. A whole server has them from one source."""

import random
from collections.abc import Callable

Tokens = Callable[[int], str]
"""Makes a token of so many random bytes, as hexadecimal digits; secrets.token_hex is one."""


def seeded_tokens(source: random.Random) -> Tokens:
    """Tokens that anybody can foretell who knows the seed: for tests and simulations."""
    return lambda count: source.randbytes(count).hex()
