"""A game: moves drawn from a seed, one after the other, on a real server, each compared with the model."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from tests.harness import PATIENCE_S
from tests.model.moves_publishing import clear, hello, publish, write_over_http
from tests.model.moves_reading import channels, history, state, word
from tests.model.moves_stopping import interrupt_call, interrupt_producer, restart
from tests.model.moves_subscribing import follow, presence, subscribe, unsubscribe
from tests.model.moves_typing import typing
from tests.model.table import KINDS_OF_SERVER, Table
from tests.model.told import Mismatch

Move = Callable[[Table], Awaitable[None]]

MOVES: dict[Move, float] = {
    publish: 30,
    write_over_http: 25,
    typing: 8,
    history: 8,
    hello: 6,
    subscribe: 6,
    state: 5,
    word: 5,
    follow: 4,
    channels: 2,
    presence: 2,
    unsubscribe: 2,
    clear: 2,
    restart: 0.5,
    interrupt_producer: 0.8,
    interrupt_call: 0.5,
}
"""How often each comes, relative to the others."""
LAST_MOVES = (*[presence] * 8, restart, *[history, state] * 10, channels)
"""How each game ends."""
MOVES_OF_A_GAME = 250
LAST_SAID = 6
"""Of what was done before a game was lost."""


class Lost(Exception):
    """A game in which the server and the model did not agree; says why, and how to play it again."""


async def play(seed: int, folder: Path, moves: int = MOVES_OF_A_GAME) -> list[str]:
    """Play one game, on a folder for the server's data; returns all that was done. Raises Lost.

    The moves are the same each time, whatever the server does: each has a generator of its own. Only how far a server
    had come when it was killed is not, and it comes to the same once all that was unanswered was sent again.
    """
    kind = list(KINDS_OF_SERVER)[seed % len(KINDS_OF_SERVER)]
    table = Table(folder, kind)
    number = 0
    try:
        await table.open()
        for number in range(moves + len(LAST_MOVES)):
            table.chance.seed(f"{seed} {number}")
            (move,) = table.chance.choices(list(MOVES), list(MOVES.values()))
            if number >= moves:
                move = LAST_MOVES[number - moves]
            table.say(f"{number}:", move.__name__)
            await _make(table, move)
        return table.story
    except Exception as problem:
        raise Lost(
            f"seed {seed} was lost at move {number}, on a server {kind}; "
            f"play it again: .venv/bin/python -m tests.model {seed} --moves {moves}\n  "
            + "\n  ".join(map(_brief, [*table.story[-LAST_SAID:], f"{type(problem).__name__}: {problem}"]))
        ) from problem
    finally:
        table.close()


def _brief(text: str) -> str:
    """Long runs of one character say no more than short ones."""
    return re.sub(r"(.)\1{20,}", r"\1\1…", text)[:3000]


async def _make(table: Table, move: Move) -> None:
    try:
        with trio.fail_after(PATIENCE_S):
            await move(table)
    except trio.TooSlowError:
        owed = [f"{player.kind}: {player.owed[0]}" for player in table.players if player.owed]
        raise Mismatch(f"what is to come does not: {'; '.join(owed) or 'an answer'}") from None
