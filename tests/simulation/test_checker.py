"""The checker on histories made by hand: each that breaks one rule is refused for it, and the honest one is not."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.simulation.checker import check
from tests.simulation.history import (
    Answered,
    Asked,
    Ended,
    Event,
    FinalLog,
    Gap,
    Greeted,
    Invoked,
    Json,
    Members,
    Op,
    Present,
    Read,
    Replica,
    Seen,
    Stored,
    Subscribed,
    Wrong,
)

P = "a-producer-of-d1"

A = Op(tag="a", device="d1", number=1, connection=1, channel="news", data={"tag": "a"}, producer=P, seq=1)
B = Op(tag="b", device="d2", number=1, connection=2, channel="news", data={"tag": "b"})
C = Op(
    tag="c", device="d1", number=2, connection=1, channel="doc", data={"tag": "c"}, producer=P, seq=2, key="k", expect=0
)
D = Op(
    tag="d", device="d1", number=3, connection=1, channel="doc", data={"tag": "d"}, producer=P, seq=3, key="k", expect=9
)
E = Op(tag="e", device="d2", number=2, connection=2, channel="doc", data={"tag": "e"}, key="k", merge=True)


def message(offset: int, tag: str, sender: str, channel: str = "news", **more: Any) -> Json:
    return {
        "op": "message",
        "channel": channel,
        "offset": offset,
        "time": 1,
        "from": sender,
        "data": {"tag": tag},
    } | more


def honest() -> list[Event]:
    return [
        Greeted("d1", 1, "e1", P, 0),
        Greeted("d2", 2, "e1", None, 0),
        Asked(1, "d2", 2, "news", 0, None, None, False),
        Subscribed(1, 0, "e1"),
        Invoked(A),
        Answered(A, "retry", 0, "unavailable", None, 1),
        Answered(A, "ok", 1, "", None, 1),
        Invoked(B),
        Seen(1, message(1, "a", "d1")),
        Answered(B, "ok", 2, "", None, 2),
        Seen(1, message(2, "b", "d2")),
        Invoked(C),
        Answered(C, "ok", 1, "", None, 1),
        Answered(C, "ok", 1, "duplicate", None, 1),
        Invoked(D),
        Answered(D, "refused", 1, "conflict", {"tag": "c"}, 1),
        Invoked(E),  # never answered
        Greeted("d1", 3, "e1", P, 3),
        Read("news", 0, 2, "e1", False, [message(1, "a", "d1"), message(2, "b", "d2")], 12),
        Replica("d1", "doc", {"k": (2, {"tag": "e"})}),
        Members("", "news", {"m2": "d2"}),
        Present("d2", "news", "d2", "m2"),
    ]


def honest_log() -> FinalLog:
    return FinalLog(
        durability="full",
        epoch="e1",
        trimmed={"news": 0, "doc": 0},
        messages={
            "news": [Stored(1, 1, "d1", None, {"tag": "a"}), Stored(2, 1, "d2", None, {"tag": "b"})],
            "doc": [Stored(1, 1, "d1", "k", {"tag": "c"}), Stored(2, 1, "d2", "k", {"tag": "e"})],
        },
        state={"doc": {"k": (2, {"tag": "e"})}},
    )


def test_an_honest_history_has_no_problems() -> None:
    assert check(honest(), honest_log()) == []


def changed(before: Event, *after: Event) -> Callable[[list[Event], FinalLog], None]:
    """What puts other events in the place of one."""

    def change(history: list[Event], log: FinalLog) -> None:
        place = history.index(before)
        history[place : place + 1] = after

    return change


def added(*events: Event) -> Callable[[list[Event], FinalLog], None]:
    def change(history: list[Event], log: FinalLog) -> None:
        history += events

    return change


def stored(channel: str, *messages: Stored) -> Callable[[list[Event], FinalLog], None]:
    def change(history: list[Event], log: FinalLog) -> None:
        log.messages[channel][:] = messages

    return change


def test_under_normal_a_power_cut_may_take_the_newest_messages_if_the_epoch_says_so() -> None:
    history, log = honest(), honest_log()._replace(durability="normal", epoch="e2")
    log.messages["news"].pop()
    again = Asked(2, "d2", 4, "news", 2, "e1", None, False)
    history += [Greeted("d2", 4, "e2", None, 0), again, Subscribed(2, 1, "e2")]
    told: list[Event] = [Gap(2, "epoch", 0, 0), Seen(2, message(1, "a", "d1"))]
    assert check([*history, *told], log) == []
    assert any("another log's offset" in problem for problem in check([*history, told[1]], log))
    assert any("in a log of epoch e2" in problem for problem in check(history, log._replace(durability="full")))


NEWS, DOC = honest_log().messages["news"], honest_log().messages["doc"]
B_OK, D_REFUSED = Answered(B, "ok", 2, "", None, 2), Answered(D, "refused", 1, "conflict", {"tag": "c"}, 1)
SEEN_A, SEEN_B = Seen(1, message(1, "a", "d1")), Seen(1, message(2, "b", "d2"))
READ = Read("news", 0, 2, "e1", False, [message(1, "a", "d1"), message(2, "b", "d2")], 12)

LIES: dict[str, tuple[Callable[[list[Event], FinalLog], None], str]] = {
    "a hole": (stored("news", NEWS[0], NEWS[1]._replace(offset=3)), "are not dense"),
    "time goes back": (stored("news", NEWS[0]._replace(time_ms=2), NEWS[1]), "time goes back"),
    "twice": (stored("news", *NEWS, NEWS[0]._replace(offset=3)), "is stored 2 times"),
    "lost": (stored("news", NEWS[0]), "b was accepted at news 2, but is stored at"),
    "elsewhere": (changed(B_OK, B_OK._replace(offset=3)), "b was accepted at news 3"),
    "nobody's": (stored("news", *NEWS, Stored(3, 1, "d1", None, {"tag": "z"})), "nobody published z"),
    "altered": (stored("news", NEWS[0]._replace(data={"tag": "a", "x": 1}), NEWS[1]), "with other data"),
    "another's": (stored("news", NEWS[0]._replace(sender="d2"), NEWS[1]), "is stored as from d2"),
    "a failure stored": (changed(B_OK, Answered(B, "retry", 0, "draining", None, 2)), "nothing was stored; it was"),
    "a refusal stored": (changed(B_OK, Answered(B, "refused", 0, "limit", None, 2)), "but is stored at 2"),
    "two verdicts": (added(Answered(A, "ok", 2, "duplicate", None, 1)), "different verdicts"),
    "overtaken": (stored("news", NEWS[1]._replace(offset=1), NEWS[0]._replace(offset=2)), "was sent after"),
    "a deletion from nowhere": (stored("doc", *DOC, Stored(3, 1, "d1", "k", None)), "deleted at [3], by none"),
    "skipped": (changed(SEEN_A), "got 2 behind 0"),
    "seen twice": (changed(SEEN_A, SEEN_A, SEEN_A), "got 1 behind 1"),
    "seen and lost": (added(Seen(1, message(3, "e", "d2"))), "which is not in the log"),
    "seen otherwise": (changed(SEEN_B, Seen(1, message(2, "b", "d9"))), "which is"),
    "short of the head": (changed(SEEN_B), "ends at 1, the channel at 2"),
    "after the end": (changed(SEEN_B, Ended(1), SEEN_B), "had ended, but got"),
    "a gap that is none": (changed(SEEN_A, Gap(1, "trimmed", 1, 1)), "are gone, but they are not"),
    "a gap elsewhere": (changed(SEEN_A, Gap(1, "trimmed", 5, 6)), "was told of a gap 5-6"),
    "another epoch": (changed(SEEN_A, Gap(1, "epoch", 0, 0), SEEN_A), "of another epoch"),
    "an old head": (
        added(Asked(2, "d1", 1, "news", None, None, None, False), Subscribed(2, 1, "e1")),
        "after 2 had been acknowledged",
    ),
    "message before ok": (changed(B_OK, SEEN_B, B_OK), "got b before its own ok"),
    "history with a hole": (changed(READ, READ._replace(messages=READ.messages[1:])), "begins at 2"),
    "history without its end": (changed(READ, READ._replace(messages=READ.messages[:1])), "says more: False"),
    "old history": (changed(READ, READ._replace(head=1, messages=READ.messages[:1])), "more had been acknowledged"),
    "not what was expected": (stored("doc", DOC[1]._replace(offset=1), DOC[0]._replace(offset=2)), "c expected doc k"),
    "no merge": (stored("doc", DOC[0], DOC[1]._replace(data={"tag": "e", "x": 1})), "e merged"),
    "a conflict with nothing": (changed(D_REFUSED, D_REFUSED._replace(offset=7)), "which never was so"),
    "a conflict with itself": (changed(D_REFUSED, D_REFUSED._replace(offset=9)), "expected 9, and was refused for 9"),
    "another state": (lambda history, log: log.state.clear(), "the log says"),
    "another replica": (added(Replica("d2", "doc", {})), "d2 holds of doc {}"),
    "forgotten": (added(Greeted("d1", 3, "e1", P, 2)), "had seq 3 settled, but a hello was told 2"),
    "a new epoch": (added(Greeted("d1", 3, "e2", P, 3)), "was told epoch e2"),
    "a ghost": (added(Members("d1", "news", {"m2": "d2", "m9": "d9"})), "sees in news"),
    "a stranger's name": (added(Members("d1", "news", {"m3": "d2"})), "does not see d2"),
    "nonsense": (added(Wrong("nonsense")), "nonsense"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(lie: str) -> None:
    history, log = honest(), honest_log()
    change, problem = LIES[lie]
    change(history, log)
    assert any(problem in found for found in check(history, log)), check(history, log)
