"""The fixtures of these tests; what they give is in arena.py."""

from pathlib import Path

import pytest

from tests.hostile.arena import Spectacle, Undisturbed


@pytest.fixture
def undisturbed(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Undisturbed:
    """undisturbed(log_lines=1, **settings): a server to attack, and the proof that others are served."""
    return Spectacle(tmp_path, caplog, monkeypatch).undisturbed


@pytest.fixture(params=["lines", "frames", "websocket"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Each machine dialect in turn."""
    return str(request.param)


@pytest.fixture(params=["lines", "frames"])
def tcp_dialect(request: pytest.FixtureRequest) -> str:
    """Each machine dialect of the TCP door in turn."""
    return str(request.param)
