"""How a load is shared out: who follows what, and what each worker has of it."""

import pytest

from trisync.loadtest import scenarios
from trisync.loadtest.plan import Plan, Share
from trisync.loadtest.scenarios import share_out
from trisync.loadtest.target import Target

TARGET = Target(("127.0.0.1", 1), ("127.0.0.1", 2), None, None)


def shares(scenario: str, **plan: object) -> list[Share]:
    return share_out(Plan(scenario=scenario, **plan), TARGET, "run")  # type: ignore[arg-type]


def test_each_follows_as_many_channels_as_it_should_however_unpopular_they_are() -> None:
    (share,) = shares("mixed", subscribers=20, channels=200, follow=50, zipf=6.0)
    assert [len(set(channels)) for channels in share.subscribers] == [50] * 20


@pytest.mark.parametrize("draws", [0, 8])
def test_popular_channels_are_followed_by_zipfs_law(draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "DRAWS", draws)
    (share,) = shares("mixed", subscribers=5000, channels=3, follow=2, zipf=1.0)
    # Chosen one after the other, weights 6, 3 and 2: 6/11 · 3/5 + 3/11 · 6/8 have the first two, and so on.
    expected = {(0, 1): 0.532, (0, 2): 0.339, (1, 2): 0.129}
    for channels, part in expected.items():
        assert share.subscribers.count([*channels]) / 5000 == pytest.approx(part, abs=0.02)
