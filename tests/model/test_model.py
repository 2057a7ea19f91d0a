"""Games against a real server, each of which the model must win with it; tests/model/__main__.py plays any others."""

from pathlib import Path

import pytest

from tests.model.game import Lost, play
from tests.model.model import Channel, Model

SEEDS = (1, 2, 3, 4)
"""One on each kind of server."""


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_answer_is_what_a_model_in_plain_python_says(tmp_path: Path, seed: int) -> None:
    await play(seed, tmp_path)


async def test_a_game_can_be_played_again(tmp_path: Path) -> None:
    first, again = [await play(6, tmp_path / name, moves=20) for name in ("first", "again")]
    assert first == again


async def test_a_game_that_is_lost_says_how_to_play_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "channel", lambda self, name: Channel(name))  # it forgets everything
    with pytest.raises(
        Lost, match=r"seed 6 was lost at move \d+, .*; play it again: \.venv/bin/python -m tests\.model 6 --moves 250"
    ):
        await play(6, tmp_path)
