"""The client's machine: what it makes of publishes, while it is connected, and while it is not."""

import logging
import math

import pytest

from tests.client.machine_talk import LIMITS, Talk
from trisync.client.errors import Fenced, NotConnected, Refused, TooLarge
from trisync.client.requests import Request
from trisync.client.status import State
from trisync.wire.protocol import OFFSET_MAX


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
    assert talk.machine.publishes.resend_at == math.inf, "not before all that is in flight is answered"
    talk.refuse(3, "out_of_sequence", retry=True, seq=0)
    assert talk.heard() == []
    resend_at = talk.machine.deadline()
    assert 0.125 <= resend_at - talk.now <= 0.25
    talk.pass_time(resend_at - talk.now)
    assert [request["seq"] for request in talk.heard()] == [1, 2, 3]
    assert talk.machine.deadline() > talk.now, "else the driver would not sleep any more"


def test_that_a_server_does_not_take_a_publish_is_said_once_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    talk = Talk()
    talk.machine.publish("lobby", 1)
    for _ in range(3):
        talk.heard()
        talk.refuse(1, "internal", retry=True)
        talk.pass_time(talk.machine.deadline() - talk.now)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "(internal)" in warning


def test_a_server_may_say_how_long_the_pause_is() -> None:
    talk = Talk()
    talk.machine.publish("lobby", 1)
    talk.heard()
    talk.refuse(1, "rate_limited", retry=True, retry_ms=1500)
    assert talk.machine.publishes.resend_at == talk.now + 1.5


def test_no_server_makes_a_publish_wait_for_ever_or_be_sent_again_without_a_pause() -> None:
    for retry_ms, least_s, most_s in ((1e300, 60, 60), (-1e300, 0.125, 0.25)):
        talk = Talk()
        talk.machine.publish("lobby", 1)
        talk.heard()
        talk.refuse(1, "rate_limited", retry=True, retry_ms=retry_ms)
        assert talk.now + least_s <= talk.machine.publishes.resend_at <= talk.now + most_s


def test_a_refusal_that_uses_up_no_seq_lets_the_rest_be_numbered_anew() -> None:
    talk = Talk()
    publishes = [talk.machine.publish("lobby", number) for number in range(3)]
    talk.heard()
    talk.refuse(1, "bad_json", retry=False)
    talk.refuse(2, "out_of_sequence", retry=True, seq=0)
    talk.refuse(3, "out_of_sequence", retry=True, seq=0)
    assert isinstance(publishes[0].error, Refused)
    assert [(request["seq"], request["data"]) for request in talk.heard()] == [(1, 1), (2, 2)]


def test_a_seq_that_the_server_expected_once_is_not_taken_for_one_that_it_expects_later() -> None:
    talk = Talk()
    for number in range(2):
        talk.machine.publish("lobby", number)
    talk.heard()
    talk.refuse(1, "bad_json", retry=False)
    talk.refuse(2, "out_of_sequence", retry=True, seq=0)
    talk.heard()
    talk.say("ok", id=1, offset=1)
    talk.machine.publish("lobby", 2)
    talk.heard()
    talk.refuse(2, "unavailable", retry=True)
    talk.pass_time(talk.machine.deadline() - talk.now)
    assert [(request["seq"], request["data"]) for request in talk.heard()] == [(2, 2)]


def test_what_is_refused_for_good_behind_one_that_is_to_be_sent_again_is_not_sent_again() -> None:
    talk = Talk()
    publishes = [talk.machine.publish("lobby", number) for number in range(3)]
    talk.heard()
    talk.refuse(1, "unavailable", retry=True)
    talk.refuse(2, "bad_json", retry=False)
    talk.refuse(3, "out_of_sequence", retry=True, seq=0)
    assert [publish.settled for publish in publishes] == [False, True, False]
    talk.pass_time(talk.machine.deadline() - talk.now)
    assert [request["data"] for request in talk.heard()] == [0, 2]


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
    talk.refuse(1, "fenced", retry=False)
    assert talk.machine.error is None, "nobody else can have its id"


def test_what_is_in_doubt_keeps_its_seq_in_a_restored_log_that_knows_how_far_this_client_had_got() -> None:
    talk = Talk()
    for number in range(4):
        talk.machine.publish("lobby", number)
    talk.heard()
    talk.say("ok", id=1, offset=1)
    talk.machine.lost("the backup is restored")
    again = talk.come_online(seq=3, epoch="e2")
    assert [(request["seq"], request["data"]) for request in again] == [(2, 1), (3, 2), (4, 3)]


def test_an_offset_that_is_expected_of_a_log_that_was_replaced_is_not_met() -> None:
    """There it may be that of a word which nobody saw."""
    key = ',"expect":3'
    talk = Talk(online=False)
    talk.machine.publish("lobby", 0, key=key, expect=1)  # of whatever log that is
    talk.come_online()
    talk.machine.publish("lobby", 1, key=key, expect=5)
    talk.heard()
    talk.machine.lost("the answers are lost")
    talk.machine.publish("lobby", 2, key=key, expect=5)
    talk.machine.publish("lobby", 3, key=key, expect=0)  # there is no such key, in any log
    assert [request["expect"] for request in talk.come_online()] == [1, 5, 5, 0]
    talk.machine.lost("a backup is restored")
    again = talk.come_online(epoch="another")
    assert [(request["expect"], request["data"]) for request in again] == [
        (1, 0),
        (OFFSET_MAX, 1),
        (OFFSET_MAX, 2),
        (0, 3),
    ]
    assert {request["key"] for request in again} == {key}
    talk.say("ok", id=1, offset=5)
    talk.machine.publish("lobby", 4, key=key, expect=5)
    assert [request["expect"] for request in talk.heard()] == [5]


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


def test_who_is_fenced_by_an_own_hello_that_came_late_connects_again_and_goes_on() -> None:
    talk = Talk(producer=None)
    publish = talk.machine.publish("lobby", 1)
    talk.heard()
    talk.refuse(1, "fenced", retry=False)
    assert talk.machine.hang_up is not None
    talk.machine.lost(talk.machine.hang_up)
    assert [(request["seq"], request["data"]) for request in talk.come_online()] == [(1, 1)]
    talk.say("ok", id=1, offset=7)
    assert (publish.offset, publish.error) == (7, None)


def test_a_producer_of_an_earlier_run_goes_on_behind_its_last_seq() -> None:
    talk = Talk(online=False)
    talk.machine.publish("lobby", 1)
    assert [request["seq"] for request in talk.come_online(seq=41)] == [42]


def test_what_is_too_large_is_refused_here_and_uses_up_no_seq() -> None:
    talk = Talk(online=False)
    early = talk.machine.publish("lobby", "x" * 1000)
    small = talk.machine.publish("lobby", "x")
    talk.greet()
    assert isinstance(early.error, TooLarge), "there is room from here on, and who waits for it looks behind the hello"
    assert [(request["seq"], request["data"]) for request in talk.heard()] == [(1, "x")]
    assert not small.settled
    with pytest.raises(TooLarge):
        talk.machine.publish("lobby", "x" * 1000)
    with pytest.raises(TooLarge):
        talk.machine.flash("lobby", "x" * 1000, lambda _: None)


def test_what_is_refused_as_too_large_takes_no_room_in_the_queue_any_more() -> None:
    talk = Talk(online=False)
    talk.machine.publish("lobby", "x" * (16 << 20))
    assert not talk.machine.publishes.has_room
    talk.greet()
    assert talk.machine.publishes.has_room


def test_who_publishes_on_hearing_that_something_queued_is_too_large_comes_behind_all_that_is_queued() -> None:
    talk = Talk(online=False)

    def publish_last() -> None:
        talk.machine.publish("lobby", "last")

    talk.machine.publish("lobby", "x" * 1000).on_settled.append(publish_last)
    talk.machine.publish("lobby", "first")
    assert [request["data"] for request in talk.come_online()] == ["first", "last"]


def test_what_is_in_doubt_and_too_large_by_now_is_asked_for_its_verdict_by_its_seq_alone() -> None:
    talk = Talk()
    stored, lost, in_conflict, behind = (
        talk.machine.publish("lobby", "x" * 500),
        talk.machine.publish("lobby", "x" * 500),
        talk.machine.publish("lobby", "x", key='"' * 300, expect=1),
        talk.machine.publish("lobby", "y"),
    )
    talk.heard()
    talk.machine.lost("the server is started again with a lower limit")
    again = talk.come_online(seq=1, limits={**LIMITS, "message_bytes_max": 300})
    assert again[:3] == [{"op": "publish", "id": seq, "seq": seq} for seq in (1, 2, 3)]
    assert (again[3]["seq"], again[3]["data"]) == (4, "y")
    talk.say("ok", id=1, offset=7, duplicate=True)
    talk.refuse(2, "bad_request", retry=False)
    talk.refuse(3, "conflict", retry=False, offset=5)
    talk.say("ok", id=4, offset=8)
    assert (stored.offset, stored.error, behind.offset) == (7, None, 8)
    assert isinstance(lost.error, TooLarge)
    assert isinstance(in_conflict.error, TooLarge)
    assert talk.machine.publishes.has_room
    assert len(talk.machine.publishes) == 0


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
