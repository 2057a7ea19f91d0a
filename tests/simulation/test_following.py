"""What a device knows of a channel that it follows."""

import random

from tests.simulation.following import Following, Wish


def test_another_log_is_known_by_the_ok_also_where_its_gap_is_lost_with_the_connection() -> None:
    following = Following(Wish("doc", "start", state=True))
    following.begin(1, {"channel": "doc", "state": True}, {"offset": 3, "epoch": "old"})
    following.hear_state({"entries": {"title": {"offset": 3, "data": "of the old log"}}, "more": False})

    following.begin(2, {"channel": "doc", "since": 3, "epoch": "old"}, {"offset": 6, "epoch": "new"})
    following.lose()

    assert (following.cursor, following.epoch, following.entries) == (0, "new", {})
    assert following.request(random.Random(0))["state"]


def test_a_replica_to_which_no_message_came_has_the_state_told_anew_as_it_knows_no_epoch() -> None:
    following = Following(Wish("doc", "start", state=True))
    following.begin(1, {"channel": "doc", "since": 0, "state": True}, {"offset": 1, "epoch": "old"})
    following.hear_state({"entries": {"title": {"offset": 1, "data": "of the old log"}}, "more": False})
    following.lose()
    for seed in range(10):
        assert following.request(random.Random(seed))["state"]
