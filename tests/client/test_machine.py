"""The client's machine, rule by rule: when it connects, what it says, and what it makes of what it hears."""

import json

import pytest

from tests.client.machine_talk import Talk
from trisync.client.errors import Closed, Forbidden, ProtocolError, Refused
from trisync.client.machine import BACKOFF_S_MAX
from trisync.client.requests import Request
from trisync.client.status import State
from trisync.client.watchdog import ANSWER_S, ASKED_MAX, QUIET_S
from trisync.client.wire import decode


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
    for _ in range(10):
        talk.now += 5.0
        talk.machine.lost("nobody is there")
    assert talk.machine.connect_at - talk.now > 0.2, "it held once, and not at each attempt since"


def test_while_it_connects_again_it_is_still_said_why_it_has_to() -> None:
    talk = Talk(online=False)
    talk.machine.connecting("here")
    assert talk.machine.status.reason == "connecting to here"
    talk.machine.lost("no connection to here: Connection refused")
    talk.machine.connecting("here")
    assert talk.machine.status.reason == "connecting to here again: no connection to here: Connection refused"


def test_a_nudge_ends_a_pause_and_probes_a_connection() -> None:
    talk = Talk()
    talk.machine.nudge()
    (ping,) = talk.heard()
    assert ping["op"] == "ping"
    talk.say("pong", id=ping["id"])
    for _ in range(10):
        talk.machine.lost("broken")
    told: list[bool] = []
    talk.machine.on_change = lambda: told.append(talk.machine.connect_at <= talk.now)
    talk.machine.nudge()
    assert told == [True], "else the driver waits until the pause that it knows of is over"


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


def test_a_server_is_not_given_up_for_what_it_said_while_the_program_held_up_its_event_loop() -> None:
    talk = Talk()
    talk.pass_time(QUIET_S + 60)
    assert [request["op"] for request in talk.heard()] == ["ping"]
    talk.pass_time(ANSWER_S + 60)
    (again,) = talk.heard()
    assert (again["op"], talk.machine.hang_up) == ("ping", None), "the answer may be here, and is yet to be read"
    assert talk.machine.deadline() == talk.now + ANSWER_S
    talk.pass_time(ANSWER_S)
    assert talk.machine.hang_up is not None


def test_a_program_that_holds_up_its_event_loop_all_the_time_gives_up_a_dead_server_too() -> None:
    talk = Talk()
    for number in range(3 * ASKED_MAX):
        talk.pass_time(QUIET_S + 60)
        assert talk.machine.hang_up is None
        if number % 3 == 2:
            talk.say("message", channel="lobby", offset=1, time=1, data=0)
    for _ in range(ASKED_MAX):
        assert talk.machine.hang_up is None
        talk.pass_time(QUIET_S + 60)
    talk.pass_time(ANSWER_S + 60)
    assert talk.machine.hang_up is not None


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


@pytest.mark.parametrize(
    ("code", "retry", "state"),
    [
        ("forbidden", False, State.CLOSED),
        ("limit", False, State.CLOSED),
        ("of_a_later_version", False, State.CLOSED),
        ("unavailable", True, State.OFFLINE),
        ("bad_request", False, State.OFFLINE),  # its hello came only in part
    ],
)
def test_a_client_that_is_refused_before_its_hello_stays_away_only_if_that_is_for_good(
    code: str, retry: bool, state: State
) -> None:
    talk = Talk(online=False)
    talk.machine.connecting("here")
    talk.machine.connected()
    talk.refuse(None, code, retry=retry)
    talk.machine.lost("the server closed the connection")
    assert talk.machine.status.state is state
    if state is State.CLOSED:
        assert isinstance(talk.machine.error, Refused)
        assert (talk.machine.error.code, talk.machine.error.message) == (code, "because")


def test_an_error_that_belongs_to_no_request_does_not_close_a_client_that_was_greeted() -> None:
    talk = Talk()
    talk.refuse(None, "forbidden", retry=False)
    assert talk.machine.status.state is State.ONLINE


def test_what_no_server_says_ends_the_connection_and_what_a_later_one_may_say_does_not() -> None:
    for payload in (b"no json", b'{"op":"message"}', b'{"op":"ok","id":"r99"}', b'{"op":"ok","id":7}', b"[]", b"\xff"):
        talk = Talk()
        unanswered = talk.machine.publish("lobby", 1)
        talk.heard()
        talk.machine.receive([payload])
        assert talk.machine.hang_up is not None, payload
        assert not unanswered.settled
    talk = Talk()
    talk.machine.receive([b'{"op":"of a later version","x":1}', b'{"op":"goodbye","why":"a new field"}'])
    talk.say("error", code="bad_request", message="without an id", retry=False)
    assert talk.machine.hang_up is None
    with pytest.raises(ProtocolError):
        decode(b"{")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"op":"error","id":1,"code":"conflict","message":"no","offset":1,"data":"\xff"}',
        b'{"op":"state","channel":"lobby","entries":{"k":{"offset":1,"data":"\xff"}},"more":true}',
        b'{"op":"message","channel":"lobby","offset":1,"time":1,"data":"\xff"}',
    ],
)
def test_data_that_is_no_utf_8_ends_the_connection_and_not_the_client(payload: bytes) -> None:
    talk = Talk()
    talk.machine.replicate("lobby")
    talk.machine.publish("lobby", 1)
    for asked in talk.heard():
        if asked["op"] == "subscribe":
            talk.say("ok", id=asked["id"], offset=0, epoch="e")
    talk.machine.receive([payload])
    assert talk.machine.hang_up is not None
    assert talk.machine.error is None


def test_an_answer_of_another_kind_ends_the_connection_and_who_asked_is_answered_on_the_next_one() -> None:
    talk = Talk(online=False)
    talk.machine.connecting("here")
    talk.machine.connected()
    (hello,) = talk.heard()
    talk.say("pong", id=hello["id"])
    assert talk.machine.hang_up is not None
    talk.machine.lost("hung up")
    talk.come_online()
    request = talk.machine.request("history", {"channel": "lobby"}, lambda _: None)
    (asked,) = talk.heard()
    talk.say("pong", id=asked["id"])
    assert talk.machine.hang_up is not None
    talk.machine.lost("hung up")
    (asked,) = talk.come_online()
    talk.say("ok", id=asked["id"])
    assert request.reply is not None


def test_an_answer_to_what_was_not_asked_yet_or_has_its_answer_ends_the_connection() -> None:
    talk = Talk(online=False)
    request = talk.machine.request("history", {"channel": "lobby"}, lambda _: None)
    talk.machine.connecting("here")
    talk.machine.connected()
    talk.heard()
    talk.say("ok", id=request.id)
    assert talk.machine.hang_up is not None
    assert request.reply is None
    talk = Talk()
    publishes = [talk.machine.publish("lobby", number) for number in range(2)]
    talk.heard()
    talk.refuse(1, "unavailable", retry=True)
    talk.say("ok", id=1, offset=1)
    assert talk.machine.hang_up is not None
    assert [publish.settled for publish in publishes] == [False, False]


def test_what_was_asked_on_a_connection_that_is_gone_is_not_awaited_on_the_next() -> None:
    talk = Talk()
    talk.machine.request("history", {"channel": "lobby"}, lambda _: None, once=True)
    talk.heard()
    talk.machine.lost("broken")
    talk.come_online()
    assert talk.machine.deadline() == talk.now + QUIET_S


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
    assert talk.machine.hang_up == "enough"
    talk.machine.lost("later")
    assert talk.machine.status.state is State.CLOSED
    with pytest.raises(Closed):
        talk.machine.publish("lobby", 1)
