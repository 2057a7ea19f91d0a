"""The client's machine, rule by rule: when it connects, what it says, and what it makes of what it hears."""

import json
import math
from random import Random
from typing import Any

import pytest

from trisync.client import feeds
from trisync.client.errors import (
    CLASSES,
    Closed,
    Fenced,
    Forbidden,
    Gap,
    NotConnected,
    ProtocolError,
    Refused,
    TooLarge,
    Unavailable,
    refusal,
)
from trisync.client.feeds import PresenceChange, Start
from trisync.client.machine import ANSWER_S, BACKOFF_S_MAX, QUIET_S, Machine, State
from trisync.client.replica import Change
from trisync.client.requests import Request
from trisync.client.wire import Member, decode, history_of
from trisync.wire.errors import CODES

Json = dict[str, Any]

HEAD = Start()

LIMITS = {"message_bytes_max": 1000, "unanswered_max": 4}


class Talk:
    """A machine and its server, of which this is the voice."""

    def __init__(self, *, online: bool = True, seed: int = 1) -> None:
        self.now = 100.0
        self.changes = 0
        self.machine = Machine(producer="p" * 16, name="me", timer=lambda: self.now, random=Random(seed), queue_max=10)
        if online:
            self.come_online()

    def come_online(self, seq: int = 0, epoch: str = "e") -> list[Json]:
        """Connect and greet; returns what the machine says then."""
        self.machine.connecting("here")
        self.machine.connected()
        (hello,) = self.heard()
        assert (hello["op"], hello["producer"], hello["name"]) == ("hello", "p" * 16, "me")
        self.say("ok", id=hello["id"], seq=seq, epoch=epoch, server="fake", session="s", limits=LIMITS)
        return self.heard()

    def heard(self) -> list[Json]:
        """What the machine says now."""
        return [json.loads(payload) for payload in self.machine.take_output()]

    def say(self, op: str, **fields: Any) -> None:
        self.machine.receive([json.dumps({"op": op, **fields}).encode()])

    def refuse(self, id: Any, code: str, **fields: Any) -> None:
        self.say("error", id=id, code=code, message="because", **fields)

    def message(self, channel: str, offset: int, data: Any = 0, **fields: Any) -> None:
        self.say("message", channel=channel, offset=offset, time=1, data=data, **fields)

    def subscribe(self, channel: str, start: Start = HEAD, *, head: int = 0, epoch: str = "e") -> feeds.Inbox:
        """Subscribe, and let the server agree."""
        inbox = self.machine.subscribe(channel, start)
        (asked,) = self.heard()
        assert asked["op"] == "subscribe"
        self.say("ok", id=asked["id"], offset=head, epoch=epoch)
        return inbox

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.machine.tick()


# Connections


def test_pauses_grow_from_a_fifth_of_a_second_to_twenty_and_are_all_jitter() -> None:
    pauses: list[list[float]] = []
    for seed in range(50):
        talk = Talk(online=False, seed=seed)
        mine = []
        for _ in range(12):
            talk.machine.connecting("here")
            talk.machine.lost("nobody is there")
            mine.append(talk.machine.connect_at - talk.now)
        pauses.append(mine)
    for attempt in range(12):
        ceiling = min(BACKOFF_S_MAX, 0.2 * 2**attempt)
        column = [mine[attempt] for mine in pauses]
        assert all(0 <= pause <= ceiling for pause in column)
        assert max(column) > 0.8 * ceiling
        assert min(column) < 0.2 * ceiling


def test_a_connection_that_held_lets_the_next_pause_be_short_again() -> None:
    talk = Talk(online=False)
    for _ in range(10):
        talk.machine.lost("nobody is there")
    talk.come_online()
    talk.machine.lost("at once")
    assert talk.machine.connect_at - talk.now > 0.2
    talk.come_online()
    talk.now += 5.0
    talk.machine.lost("later")
    assert talk.machine.connect_at - talk.now <= 0.2


def test_a_nudge_ends_a_pause_and_probes_a_connection() -> None:
    talk = Talk()
    talk.machine.nudge()
    (ping,) = talk.heard()
    assert ping["op"] == "ping"
    talk.say("pong", id=ping["id"])
    for _ in range(10):
        talk.machine.lost("broken")
    talk.machine.nudge()
    assert talk.machine.connect_at <= talk.now


def test_goodbye_says_when_to_come_back_but_not_for_longer_than_a_minute() -> None:
    for said_ms, pause_s in ((1700, 1.7), (10**9, 60.0)):
        talk = Talk()
        talk.say("goodbye", code="draining", reconnect_ms=said_ms)
        talk.machine.lost("closed")
        assert talk.machine.connect_at - talk.now == pytest.approx(pause_s)


def test_a_silent_server_is_asked_and_then_given_up() -> None:
    talk = Talk()
    assert talk.machine.deadline() == talk.now + QUIET_S
    talk.pass_time(QUIET_S)
    (ping,) = talk.heard()
    talk.say("pong", id=ping["id"])
    assert talk.machine.hang_up is None
    talk.pass_time(QUIET_S)
    talk.heard()
    assert talk.machine.deadline() == talk.now + ANSWER_S
    talk.pass_time(ANSWER_S)
    assert talk.machine.hang_up == "the server said nothing for 35 s"


def test_a_server_that_owes_an_answer_is_asked_sooner() -> None:
    talk = Talk()
    talk.machine.publish("lobby", 1)
    talk.heard()
    talk.pass_time(ANSWER_S)
    assert [request["op"] for request in talk.heard()] == ["ping"]


def test_a_hello_that_is_not_answered_ends_the_connection() -> None:
    talk = Talk(online=False)
    talk.machine.connecting("here")
    talk.machine.connected()
    talk.pass_time(ANSWER_S)
    assert talk.machine.hang_up is not None


def test_a_hello_that_is_refused_for_good_closes_and_one_that_is_not_is_tried_again() -> None:
    for retry, state in ((True, State.OFFLINE), (False, State.CLOSED)):
        talk = Talk(online=False)
        publish = talk.machine.publish("lobby", 1)
        talk.machine.connecting("here")
        talk.machine.connected()
        (hello,) = talk.heard()
        talk.refuse(hello["id"], "unavailable" if retry else "forbidden", retry=retry)
        assert talk.machine.hang_up is not None
        talk.machine.lost("hung up")
        assert talk.machine.status.state is state
        assert publish.settled is not retry
        assert isinstance(talk.machine.error, Forbidden) is not retry


def test_what_no_server_says_ends_the_connection_and_what_a_later_one_may_say_does_not() -> None:
    for payload in (b"no json", b'{"op":"message"}', b'{"op":"ok","id":"r99"}', b'{"op":"ok","id":7}', b"[]", b"\xff"):
        talk = Talk()
        talk.machine.receive([payload])
        assert talk.machine.hang_up is not None, payload
    talk = Talk()
    talk.machine.receive([b'{"op":"of a later version","x":1}', b'{"op":"goodbye","why":"a new field"}'])
    talk.say("error", code="bad_request", message="without an id", retry=False)
    assert talk.machine.hang_up is None
    with pytest.raises(ProtocolError):
        decode(b"{")


def test_a_closed_machine_fails_all_that_waits_and_says_no_more() -> None:
    talk = Talk()
    inbox = talk.subscribe("lobby")
    replica, members = talk.machine.replicate("doc"), talk.machine.watch("doc")
    publish = talk.machine.publish("lobby", 1)
    asked: list[Request] = []
    talk.machine.request("history", {"channel": "lobby"}, asked.append)
    assert talk.machine.close("enough") == 1
    assert talk.machine.close("again") == 0
    assert {type(error) for error in (publish.error, asked[0].error, replica.error, members.error)} == {Closed}
    with pytest.raises(Closed):
        inbox.take()
    assert talk.heard() == []
    assert {json.loads(payload)["channel"] for payload in talk.machine.last_words} == {"lobby", "doc"}
    talk.say("ok", id=1, offset=1)
    talk.machine.lost("later")
    assert talk.machine.status.state is State.CLOSED
    with pytest.raises(Closed):
        talk.machine.publish("lobby", 1)


# Publishes


def test_at_most_a_window_is_in_flight_and_answers_let_more_go() -> None:
    talk = Talk()
    publishes = [talk.machine.publish("lobby", number) for number in range(6)]
    assert [request["seq"] for request in talk.heard()] == [1, 2, 3, 4]
    assert talk.heard() == []
    talk.say("ok", id=1, offset=11)
    assert (publishes[0].offset, publishes[0].settled, publishes[1].settled) == (11, True, False)
    assert [request["seq"] for request in talk.heard()] == [5]


def test_much_in_flight_waits_for_answers_before_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trisync.client.publishes.IN_FLIGHT_BYTES", 300)
    talk = Talk()
    for _ in range(4):
        talk.machine.publish("lobby", "x" * 200)
    assert [request["seq"] for request in talk.heard()] == [1, 2]
    talk.say("ok", id=1, offset=1)
    assert [request["seq"] for request in talk.heard()] == [3]


def test_what_was_in_doubt_is_sent_again_under_its_seq() -> None:
    talk = Talk()
    publishes = [talk.machine.publish("lobby", number) for number in range(3)]
    talk.heard()
    talk.say("ok", id=1, offset=1)
    talk.machine.lost("broken")
    assert [(request["seq"], request["data"]) for request in talk.come_online(seq=2)] == [(2, 1), (3, 2)]
    talk.say("ok", id=2, offset=2, duplicate=True)
    talk.say("ok", id=3, offset=3)
    assert [publish.offset for publish in publishes] == [1, 2, 3]


def test_a_server_that_cannot_take_it_gets_all_again_in_order_after_a_pause() -> None:
    talk = Talk()
    for number in range(3):
        talk.machine.publish("lobby", number)
    talk.heard()
    talk.refuse(1, "unavailable", retry=True)
    talk.refuse(2, "out_of_sequence", retry=True, seq=0)
    assert talk.machine.publishes.resend_at is None, "not before all that is in flight is answered"
    talk.refuse(3, "out_of_sequence", retry=True, seq=0)
    assert talk.heard() == []
    resend_at = talk.machine.deadline()
    assert 0.125 <= resend_at - talk.now <= 0.25
    talk.pass_time(resend_at - talk.now)
    assert [request["seq"] for request in talk.heard()] == [1, 2, 3]


def test_a_server_may_say_how_long_the_pause_is() -> None:
    talk = Talk()
    talk.machine.publish("lobby", 1)
    talk.heard()
    talk.refuse(1, "rate_limited", retry=True, retry_ms=1500)
    assert talk.machine.publishes.resend_at == talk.now + 1.5


def test_a_refusal_that_uses_up_no_seq_lets_the_rest_be_numbered_anew() -> None:
    talk = Talk()
    publishes = [talk.machine.publish("lobby", number) for number in range(3)]
    talk.heard()
    talk.refuse(1, "bad_json", retry=False)
    talk.refuse(2, "out_of_sequence", retry=True, seq=0)
    talk.refuse(3, "out_of_sequence", retry=True, seq=0)
    assert isinstance(publishes[0].error, Refused)
    assert [(request["seq"], request["data"]) for request in talk.heard()] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("seq", "epoch"),
    [
        (1, "e"),  # it has forgotten some of it
        (0, "e2"),  # an older log was restored
        (9, "e2"),  # so was a newer one, in which the seqs are those of other publishes
    ],
)
def test_where_the_server_cannot_know_what_is_in_doubt_another_producer_publishes_it(seq: int, epoch: str) -> None:
    talk = Talk()
    for number in range(4):
        talk.machine.publish("lobby", number)
    talk.heard()
    for number in (1, 2):
        talk.say("ok", id=number, offset=number)
    talk.machine.lost("the backup is restored")
    (hello,) = talk.come_online(seq=seq, epoch=epoch)
    assert (hello["op"], hello["name"]) == ("hello", "me")
    assert hello["producer"] == talk.machine.producer != "p" * 16
    assert talk.machine.status.state is State.CONNECTING
    talk.say("ok", id=hello["id"], seq=0, epoch=epoch, server="fake", session="s", limits=LIMITS)
    assert [(request["seq"], request["data"]) for request in talk.heard()] == [(1, 2), (2, 3)]


def test_what_is_in_doubt_keeps_its_seq_in_a_restored_log_that_knows_how_far_this_client_had_got() -> None:
    talk = Talk()
    for number in range(4):
        talk.machine.publish("lobby", number)
    talk.heard()
    talk.say("ok", id=1, offset=1)
    talk.machine.lost("the backup is restored")
    again = talk.come_online(seq=3, epoch="e2")
    assert [(request["seq"], request["data"]) for request in again] == [(2, 1), (3, 2), (4, 3)]


def test_a_producer_that_somebody_else_uses_closes_the_client() -> None:
    talk = Talk()
    publish = talk.machine.publish("lobby", 1)
    talk.heard()
    talk.refuse(1, "fenced", retry=False)
    assert isinstance(publish.error, Fenced)
    assert talk.machine.status.state is State.CLOSED

    talk = Talk()
    talk.machine.lost("broken")
    talk.come_online(seq=5)
    assert isinstance(talk.machine.error, Fenced), "this client never gave seq 5"


def test_a_producer_of_an_earlier_run_goes_on_behind_its_last_seq() -> None:
    talk = Talk(online=False)
    talk.machine.publish("lobby", 1)
    assert [request["seq"] for request in talk.come_online(seq=41)] == [42]


def test_what_is_too_large_is_refused_here_and_uses_up_no_seq() -> None:
    talk = Talk(online=False)
    early = talk.machine.publish("lobby", "x" * 1000)
    small = talk.machine.publish("lobby", "x")
    assert [(request["seq"], request["data"]) for request in talk.come_online()] == [(1, "x")]
    assert isinstance(early.error, TooLarge)
    assert not small.settled
    with pytest.raises(TooLarge):
        talk.machine.publish("lobby", "x" * 1000)
    with pytest.raises(TooLarge):
        talk.machine.flash("lobby", "x" * 1000, lambda _: None)


def test_an_ephemeral_message_and_its_fate_end_with_the_connection() -> None:
    talk = Talk()
    done: list[Request] = []
    talk.machine.flash("lobby", 1, done.append)
    assert [request["ephemeral"] for request in talk.heard()] == [True]
    talk.machine.lost("broken")
    assert isinstance(done[0].error, NotConnected)
    with pytest.raises(NotConnected):
        talk.machine.flash("lobby", 1, done.append)


def test_a_question_is_asked_again_on_the_next_connection_unless_nobody_waits() -> None:
    talk = Talk()
    done: list[Request] = []
    talk.machine.request("history", {"channel": "lobby"}, done.append)
    forgotten = talk.machine.request("history", {"channel": "other"}, done.append)
    assert len(talk.heard()) == 2
    talk.machine.forget(forgotten)
    talk.machine.lost("broken")
    done.clear()
    (again,) = talk.come_online()
    talk.say("ok", id=again["id"], offset=1, epoch="e", messages=[], more=False)
    assert [request.error for request in done] == [None]


# Subscriptions


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
    assert list(replica.shown_keys()) == []
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


def test_a_write_is_shown_until_the_log_has_it() -> None:
    talk = Talk()
    replica = talk.machine.replicate("doc")
    (asked,) = talk.heard()
    talk.say("ok", id=asked["id"], offset=0, epoch="e")
    talk.say("state", channel="doc", entries={}, more=False)
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


# Types


def test_every_code_of_the_wire_has_an_exception_of_its_own() -> None:
    assert set(CODES) <= set(CLASSES)
    assert len(set(CLASSES.values())) == len(CLASSES)
    error = refusal("unavailable", "the disk is full", True, {"x": 1})
    assert (type(error), error.retry, error.details, str(error)) == (
        Unavailable, True, {"x": 1}, "the disk is full (unavailable)",
    )  # fmt: skip
    assert type(refusal("of a later version", "?")) is Refused


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
