"""The client's machine: what it makes of subscriptions, over reconnects and gaps; and of what cannot be read."""

import json
import math

import pytest

from tests.client.machine_talk import Talk
from trisync.client import feeds
from trisync.client.errors import CLASSES, Forbidden, Gap, Refused, Unavailable, refusal
from trisync.client.feeds import PresenceChange, Start
from trisync.client.replica import Change, Replica
from trisync.client.wire import Member, Message, decode, history_of
from trisync.wire.errors import CODES


def test_a_subscription_goes_on_behind_the_last_message_of_the_same_log() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(last=3), head=10)
    for offset in (8, 9):
        talk.message("lobby", offset)
    talk.machine.lost("broken")
    (again,) = talk.come_online()
    assert (again["since"], again["epoch"], "last" in again) == (9, "e", False)
    talk.message("lobby", 9)  # of nothing that was asked for on this connection: let go of
    talk.say("ok", id=again["id"], offset=10, epoch="e")
    talk.message("lobby", 10)
    taken = [inbox.take() for _ in range(4)]
    assert [getattr(item, "offset", None) for item in taken] == [8, 9, 10, None]


def test_a_hole_ends_the_connection_and_is_never_passed_over() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(since=0), head=3)
    talk.message("lobby", 2)
    assert talk.machine.hang_up == "lobby went from offset 0 to 2 without a word"
    assert inbox.take() is None
    assert inbox.cursor == 0


def test_another_log_is_noticed_even_if_the_connection_breaks_before_its_gap() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby", head=5)
    talk.machine.lost("broken")
    (again,) = talk.come_online(epoch="f")
    talk.say("ok", id=again["id"], offset=9, epoch="f")
    talk.machine.lost("broken again")
    (again,) = talk.come_online(epoch="f")
    assert (again["since"], again["epoch"]) == (0, "f")
    talk.say("ok", id=again["id"], offset=9, epoch="f")
    assert inbox.take() == Gap("lobby", "epoch")
    assert inbox.take() is None, "it is told once"


def test_what_another_log_has_lost_of_its_beginning_is_told_as_well() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(since=0), head=5)
    talk.machine.lost("broken")
    (again,) = talk.come_online(epoch="f")
    talk.say("ok", id=again["id"], offset=9, epoch="f")
    talk.say("gap", channel="lobby", reason="trimmed", **{"from": 1, "to": 7})
    talk.message("lobby", 8)
    assert inbox.take() == Gap("lobby", "trimmed", 1, 7), "of nothing that was had, no loss is told"

    talk.machine.lost("a backup is restored")
    (again,) = talk.come_online(epoch="g")
    talk.say("ok", id=again["id"], offset=9, epoch="g")
    talk.say("gap", channel="lobby", reason="epoch")
    talk.say("gap", channel="lobby", reason="trimmed", **{"from": 1, "to": 6})
    talk.message("lobby", 7)
    taken = [inbox.take() for _ in range(4)]
    assert taken[1:3] == [Gap("lobby", "epoch"), Gap("lobby", "trimmed", 1, 6)]
    assert [getattr(item, "offset", None) for item in taken] == [8, None, None, 7]


def test_what_another_log_has_lost_is_told_also_where_nothing_had_come_of_the_last_messages() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(last=3), head=9)
    talk.machine.lost("a backup is restored")
    (again,) = talk.come_online(epoch="f")
    talk.say("ok", id=again["id"], offset=9, epoch="f")
    talk.say("gap", channel="lobby", reason="epoch")
    talk.say("gap", channel="lobby", reason="trimmed", **{"from": 1, "to": 7})
    assert [inbox.take(), inbox.take()] == [Gap("lobby", "epoch"), Gap("lobby", "trimmed", 1, 7)]


def test_what_retention_takes_behind_the_last_messages_is_told_also_where_none_of_these_had_come() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(last=3), head=9)
    talk.machine.lost("the network")
    (again,) = talk.come_online()
    assert again["since"] == 6
    talk.say("ok", id=again["id"], offset=12, epoch="e")
    talk.say("gap", channel="lobby", reason="trimmed", **{"from": 7, "to": 11})
    talk.message("lobby", 12)
    assert inbox.take() == Gap("lobby", "trimmed", 10, 11), "of the last three there were none: that is no gap"
    message = inbox.take()
    assert isinstance(message, Message)
    assert message.offset == 12


def test_a_word_of_a_state_that_is_newer_than_the_messages_behind_it_stays() -> None:
    talk = Talk()
    talk.subscribe("lobby", Start(since=3), head=4)
    replica = talk.machine.replicate("lobby")
    (asked,) = talk.heard()
    talk.say("ok", id=asked["id"], offset=4, epoch="e")
    talk.say("state", channel="lobby", entries={"title": {"offset": 5, "data": "new"}}, more=False)
    talk.message("lobby", 4, "old", key="title")
    assert replica.value("title") == "new"


def test_ephemeral_messages_that_nobody_takes_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BUFFER_MESSAGES", 2)
    talk = Talk()
    inbox = talk.subscribe("lobby")
    for number in range(100):
        talk.say("message", channel="lobby", time=1, data=number)
    kept = 0
    while inbox.take() is not None:
        kept += 1
    assert kept == 2 * feeds.OVERFULL + 1


def test_a_channel_that_was_left_just_before_the_end_is_among_the_last_words() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby")
    talk.machine.leave("lobby", inbox)
    talk.machine.close("enough")
    assert [json.loads(payload)["channel"] for payload in talk.machine.last_words] == ["lobby"]


def test_what_is_taken_out_is_of_the_log_it_came_from_though_there_is_another_one_by_now() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(since=0), head=2)
    talk.message("lobby", 1)
    talk.message("lobby", 2)
    talk.machine.lost("a backup is restored")
    (again,) = talk.come_online(epoch="f")
    talk.say("ok", id=again["id"], offset=9, epoch="f")
    talk.message("lobby", 1)
    assert inbox.origin == (0, "e")
    assert [(type(inbox.take()), inbox.taken_epoch) for _ in range(4)] == [
        (Message, "e"), (Message, "e"), (Gap, "f"), (Message, "f"),
    ]  # fmt: skip


def test_a_gap_tells_only_of_what_was_not_taken_in() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(since=0), head=5)
    talk.message("lobby", 1)
    talk.say("gap", channel="lobby", reason="trimmed", **{"from": 1, "to": 3})
    talk.say("gap", channel="lobby", reason="trimmed", **{"from": 1, "to": 3})
    talk.message("lobby", 4)
    first, gap, fourth = inbox.take(), inbox.take(), inbox.take()
    assert getattr(first, "offset", None) == 1
    assert gap == Gap("lobby", "trimmed", 2, 3)
    assert getattr(fourth, "offset", None) == 4
    assert json.loads(Gap("lobby", "trimmed", 2, 3).to_json()) == {
        "op": "gap", "channel": "lobby", "from": 2, "to": 3, "reason": "trimmed",
    }  # fmt: skip


def test_a_full_inbox_stops_the_reading_unless_an_answer_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BUFFER_MESSAGES", 2)
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(since=0), head=100)
    for offset in (1, 2, 3):
        talk.message("lobby", offset)
    assert not talk.machine.may_read()
    assert talk.machine.deadline() == math.inf, "who is not listened to is not called silent"
    talk.machine.publish("lobby", 1)
    talk.heard()
    assert talk.machine.may_read()
    for offset in range(4, 20):
        talk.message("lobby", offset)
    assert inbox.overflowed
    assert inbox.cursor == 9, "what does not fit is let go of"
    (parked,) = talk.heard()
    assert (parked["op"], "since" in parked) == ("subscribe", False), "the server is not to send the rest now"
    talk.say("ok", id=parked["id"], offset=100, epoch="e")
    talk.message("lobby", 101)
    talk.say("ok", id=1, offset=101)
    assert not talk.machine.may_read()
    assert [getattr(inbox.take(), "offset", None) for _ in range(7)] == list(range(1, 8))
    (again,) = talk.heard()
    assert (again["op"], again["since"]) == ("subscribe", 9)
    talk.message("lobby", 20)
    talk.say("ok", id=again["id"], offset=101, epoch="e")
    talk.message("lobby", 10)
    assert [getattr(inbox.take(), "offset", None) for _ in range(3)] == [8, 9, 10]


def test_a_full_inbox_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BUFFER_MESSAGES", 1)
    talk = Talk()
    full, other = talk.subscribe("full"), talk.subscribe("other")
    for offset in range(1, 10):
        talk.message("full", offset)
    assert talk.machine.may_read()
    (parked,) = talk.heard()
    assert full.cursor == 5
    assert [getattr(full.take(), "offset", None) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert talk.heard() == [], "the answer to what was asked for is yet to come"
    talk.say("ok", id=parked["id"], offset=9, epoch="e")
    (again,) = talk.heard()
    assert again["since"] == 5
    talk.say("ok", id=again["id"], offset=9, epoch="e")
    talk.message("full", 6)
    talk.message("other", 1)
    assert getattr(full.take(), "offset", None) == 6
    assert getattr(other.take(), "offset", None) == 1


def test_a_subscription_that_is_refused_for_good_ends_and_one_that_is_not_is_asked_for_again() -> None:
    talk = Talk()
    inbox = talk.machine.subscribe("lobby", Start())
    (asked,) = talk.heard()
    talk.refuse(asked["id"], "unavailable", retry=True)
    assert talk.heard() == []
    talk.pass_time(talk.machine.deadline() - talk.now)
    (asked,) = talk.heard()
    talk.refuse(asked["id"], "forbidden", retry=False)
    with pytest.raises(Forbidden):
        inbox.take()
    talk.machine.leave("lobby", inbox)
    assert talk.heard() == [], "it had ended by itself"


@pytest.mark.parametrize("verdict", ["ok", "forbidden"])
def test_what_was_to_be_asked_for_again_and_was_asked_for_meanwhile_is_not_asked_for_twice(verdict: str) -> None:
    talk = Talk()
    inbox = talk.machine.subscribe("lobby", Start())
    (asked,) = talk.heard()
    talk.refuse(asked["id"], "unavailable", retry=True)
    retry_at = talk.machine.deadline()
    talk.machine.replicate("lobby")
    (asked,) = talk.heard()
    if verdict == "ok":
        talk.say("ok", id=asked["id"], offset=0, epoch="e")
    else:
        talk.refuse(asked["id"], verdict, retry=False)
        with pytest.raises(Forbidden):
            inbox.take()
    talk.pass_time(retry_at - talk.now)
    assert talk.heard() == []


def test_what_a_full_inbox_has_is_still_taken_when_it_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BUFFER_MESSAGES", 1)
    talk = Talk()
    inbox = talk.subscribe("lobby", Start(since=0), head=9)
    for offset in range(1, 10):
        talk.message("lobby", offset)
    assert inbox.overflowed
    talk.machine.watch("lobby")
    talk.machine.leave("lobby", inbox)
    other = talk.machine.subscribe("lobby", Start())
    for request in talk.heard():
        talk.say("ok", id=request["id"], offset=9, epoch="e", member="1")
    assert [getattr(inbox.take(), "offset", None) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert talk.heard() == [], "the other one has nothing to do with that"
    talk.message("lobby", 10)
    assert getattr(other.take(), "offset", None) == 10


def test_leaving_the_last_part_of_a_channel_leaves_the_channel() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby")
    members = talk.machine.watch("lobby")
    (both,) = talk.heard()
    assert (both["since"], both["presence"]) == (0, True)
    talk.machine.leave("lobby", inbox)
    assert talk.heard() == []
    talk.machine.leave("lobby", members)
    assert [(request["op"], request["channel"]) for request in talk.heard()] == [("unsubscribe", "lobby")]


def test_what_still_comes_of_a_part_that_was_left_is_let_go_of() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby")
    replica, members = talk.machine.replicate("lobby"), talk.machine.watch("lobby")
    for asked in talk.heard():
        talk.say("ok", id=asked["id"], offset=0, epoch="e", member="1")
    for part in (replica, members):
        talk.machine.leave("lobby", part)
    talk.say("state", channel="lobby", entries={"a": {"offset": 1, "data": 1}}, more=False)
    talk.say("presence", channel="lobby", members=[{"member": "1"}])
    talk.message("lobby", 1, key="a")
    assert getattr(inbox.take(), "offset", None) == 1
    assert (replica.ready, members.ready) == (False, False)


def test_presence_is_told_as_what_has_changed_also_when_all_are_told_anew() -> None:
    talk = Talk()
    members = talk.machine.watch("lobby")
    changes: list[PresenceChange] = []
    members.on_change = changes.append
    (asked,) = talk.heard()
    talk.say("ok", id=asked["id"], offset=0, epoch="e", member="1")
    talk.say("presence", channel="lobby", members=[{"member": "1"}, {"member": "2", "name": "bob"}])
    talk.say("presence", channel="lobby", joined=[{"member": "3"}], left=[], updated=[{"member": "2", "name": "rob"}])
    changes.clear()
    talk.say("presence", channel="lobby", members=[{"member": "2", "name": "rob"}, {"member": "4"}])
    assert changes == [
        PresenceChange("left", Member("1")),
        PresenceChange("left", Member("3")),
        PresenceChange("joined", Member("4")),
    ]
    assert members.me == "1"


def test_a_state_that_is_read_anew_changes_in_one_step() -> None:
    talk = Talk()
    replica = talk.machine.replicate("doc")
    changes: list[Change] = []
    replica.on_change = changes.append
    (asked,) = talk.heard()
    talk.say("ok", id=asked["id"], offset=2, epoch="e")
    talk.say("state", channel="doc", entries={"a": {"offset": 1, "data": 1}}, more=True)
    assert (replica.ready, replica.value("a")) == (False, None)
    talk.say("state", channel="doc", entries={"b": {"offset": 2, "data": 2}}, more=False)
    assert (replica.ready, replica.value("a")) == (True, 1)
    changes.clear()
    # The channel is emptied: a gap, and the state from its beginning.
    talk.say("gap", channel="doc", reason="trimmed", **{"from": 1, "to": 2})
    assert dict.fromkeys(replica.shown_keys()) == {"a": None, "b": None}
    talk.say("state", channel="doc", entries={}, more=False)
    assert replica.shown_keys() == []
    assert {(change.key, change.value) for change in changes} == {("a", None), ("b", None)}


def test_a_state_beside_the_last_messages_is_asked_for_once_it_is_certain_where_they_begin() -> None:
    talk = Talk()
    inbox = talk.machine.subscribe("doc", Start(last=5))
    replica = talk.machine.replicate("doc")
    first, second = talk.heard()  # one for each call; only the answer to the newest counts
    assert ("state" in first, second["state"], second["last"]) == (False, True, 5)
    for asked in (first, second):
        talk.say("ok", id=asked["id"], offset=9, epoch="e")
    (again,) = talk.heard()
    assert (again["since"], again["epoch"], again["state"]) == (4, "e", True)
    talk.say("ok", id=again["id"], offset=9, epoch="e")
    talk.say("gap", channel="doc", reason="trimmed", **{"from": 5, "to": 9})
    talk.say("state", channel="doc", entries={}, more=False)
    assert replica.ready
    assert inbox.take() is None, "the last five were asked for, and there are none: that is no gap"


def an_empty_replica(talk: Talk) -> Replica:
    replica = talk.machine.replicate("doc")
    (asked,) = talk.heard()
    talk.say("ok", id=asked["id"], offset=0, epoch="e")
    talk.say("state", channel="doc", entries={}, more=False)
    return replica


def test_a_write_is_shown_until_the_log_has_it() -> None:
    talk = Talk()
    replica = an_empty_replica(talk)
    changes: list[Change] = []
    replica.on_change = changes.append
    publish = talk.machine.publish("doc", "mine", key="k")
    replica.write("k", "mine", publish)
    talk.heard()
    talk.message("doc", 1, "theirs", key="k")
    assert replica.value("k") == "mine"
    talk.say("ok", id=1, offset=2)
    assert replica.value("k") == "mine", "its message is not here yet"
    talk.message("doc", 2, "mine", key="k")
    talk.message("doc", 3, "theirs again", key="k")
    assert replica.value("k") == "theirs again"
    assert [(change.value, change.confirmed) for change in changes] == [
        ("mine", False),
        ("mine", True),
        ("theirs again", True),
    ]


def test_a_value_is_another_one_if_its_json_is() -> None:
    """To Python, False is 0."""
    talk = Talk()
    replica = an_empty_replica(talk)
    told: list[str] = []
    replica.on_change = lambda change: told.append(repr(change.value))
    values = [0, False, 0.0, [0], [False], [False, 1], {"a": 1}, {"a": True}, {"b": True}, None]
    for number, value in enumerate(values):
        for again in (1, 2):
            talk.message("doc", 2 * number + again, value, key="k")
    assert told == [repr(value) for value in values]


def test_a_write_that_only_a_log_from_before_has_is_shown_no_longer() -> None:
    talk = Talk()
    replica = talk.machine.replicate("doc")
    (asked,) = talk.heard()
    talk.say("ok", id=asked["id"], offset=9, epoch="e")
    talk.say("state", channel="doc", entries={"k": {"offset": 5, "data": "old"}}, more=False)
    replica.write("k", "mine", talk.machine.publish("doc", "mine", key="k"))
    talk.heard()
    talk.say("ok", id=1, offset=10)
    talk.machine.lost("the server is stopped, and has a backup restored, before its message comes")
    (asked,) = talk.come_online(seq=1, epoch="another")
    talk.say("ok", id=asked["id"], offset=5, epoch="another")
    assert replica.value("k") == "mine", "as it was, until it has been read anew"
    talk.say("state", channel="doc", entries={"k": {"offset": 5, "data": "old"}}, more=False)
    assert replica.value("k") == "old"


@pytest.mark.parametrize("stored", [True, False])
def test_what_shows_when_a_write_is_settled_late_is_told(stored: bool) -> None:
    """Its answer was lost with a connection; by the time it comes again, the state has gone on."""
    talk = Talk()
    replica = an_empty_replica(talk)
    replica.write("k", "same", talk.machine.publish("doc", "same", key="k"))
    talk.heard()
    talk.machine.lost("the answer is lost")
    (asked, again) = talk.come_online(seq=1)
    assert (asked["op"], again["seq"]) == ("subscribe", 1)
    changes: list[Change] = []
    replica.on_change = changes.append
    talk.say("ok", id=asked["id"], offset=2, epoch="e")
    value = "theirs" if stored else "same"
    talk.say("state", channel="doc", entries={"k": {"offset": 2, "data": value}}, more=False)
    assert not changes
    if stored:
        talk.say("ok", id=1, offset=1, duplicate=True)
    else:
        talk.refuse(1, "conflict", retry=False)
    [change] = changes
    assert change[:3] == ("k", value, True) == ("k", replica.value("k"), True)
    assert (change.error is None) is stored


# Types


def test_every_code_of_the_wire_has_an_exception_of_its_own() -> None:
    assert set(CODES) <= set(CLASSES)
    assert len(set(CLASSES.values())) == len(CLASSES)
    error = refusal("unavailable", "the disk is full", True, {"x": 1})
    assert (type(error), error.retry, error.details, str(error)) == (
        Unavailable, True, {"x": 1}, "the disk is full (unavailable)",
    )  # fmt: skip
    assert type(refusal("of a later version", "?", False, {})) is Refused


@pytest.mark.parametrize(
    ("since", "limit", "offsets", "trimmed", "head", "gap"),
    [
        (0, 10, [1, 2], 0, 2, None),
        (0, 10, [3, 4], 2, 4, (1, 2)),
        (5, 10, [], 9, 9, (6, 9)),
        (9, 10, [], 9, 9, None),
        (None, 10, [3, 4], 2, 4, (1, 2)),
        (None, 2, [3, 4], 2, 4, None),
        (None, 10, [], 0, 0, None),
        (None, 10, [], 4, 4, (1, 4)),
    ],
)
def test_history_tells_what_is_missing_at_its_beginning(
    since: int | None, limit: int, offsets: list[int], trimmed: int, head: int, gap: tuple[int, int] | None
) -> None:
    messages = [{"op": "message", "channel": "c", "offset": n, "time": 1, "data": 0} for n in offsets]
    ok = {"op": "ok", "messages": messages, "offset": head, "trimmed": trimmed, "epoch": "e", "more": False}
    said = decode(json.dumps(ok).encode())
    page = history_of("c", since, limit, said)  # type: ignore[arg-type]
    assert page.gap == (None if gap is None else Gap("c", "trimmed", *gap))
