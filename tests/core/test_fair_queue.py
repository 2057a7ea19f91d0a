"""The queue of publishes: each flow in its own order, and nobody behind the whole of somebody else's flood."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import publishes
from trisync.core.fair_queue import FEW, FairQueue
from trisync.storage.log import Flow, Submission

UNBOUNDED = 10**9


def queued(queue: FairQueue, flow: Flow, sizes: list[int]) -> list[Submission]:
    submissions = [publishes(size, flow=flow) for size in sizes]
    for submission in submissions:
        queue.push(submission)
    return submissions


def taken_one_by_one(queue: FairQueue, count: int = UNBOUNDED) -> list[Submission]:
    taken: list[Submission] = []
    while queue and len(taken) < count:
        batch = queue.take(1, UNBOUNDED)
        queue.settle(batch)
        taken += batch
    return taken


def test_flows_that_are_alike_take_turns() -> None:
    queue = FairQueue()
    a, b = queued(queue, Flow(), [5] * 3), queued(queue, Flow(), [5] * 3)
    assert taken_one_by_one(queue) == [a[0], b[0], a[1], b[1], a[2], b[2]]


def test_who_sends_little_at_a_time_gets_as_many_bytes_as_who_sends_much() -> None:
    queue = FairQueue()
    queued(queue, Flow(), [100] * 50)
    small = queued(queue, Flow(), [1] * 5000)
    taken = taken_one_by_one(queue, 1000)
    of_small = sum(submission.size for submission in taken if submission.flow is small[0].flow)
    of_large = sum(submission.size for submission in taken) - of_small
    assert abs(of_small - of_large) <= publishes(100).size


def test_who_comes_to_a_flood_is_next() -> None:
    queue = FairQueue()
    for _ in range(10):
        queued(queue, Flow(), [100] * 100)
    taken_one_by_one(queue, 500)
    newcomer = publishes(1)
    queue.push(newcomer)
    assert taken_one_by_one(queue, 1) == [newcomer]


def test_a_stream_of_newcomers_starves_nobody() -> None:
    queue = FairQueue()
    queued(queue, Flow(), [1] * 20)
    left = 20
    for _ in range(30):  # one comes whenever two are served
        queue.push(publishes(1))
        left -= sum(submission.arrival < 20 for submission in taken_one_by_one(queue, 2))
    assert left == 0


def test_a_crowd_of_newcomers_larger_than_a_publish_has_bytes_starves_nobody() -> None:
    queue = FairQueue()
    flow = Flow()
    queued(queue, flow, [1, 1])
    crowd = 2 * publishes(1).size
    for _ in range(crowd):
        queue.push(publishes(1))
    for _ in range(3 * crowd):  # one comes whenever one is served
        taken_one_by_one(queue, 1)
        queue.push(publishes(1))
    assert flow.waiting == 0


@pytest.mark.parametrize("at_once", [1, 1000])
def test_a_flow_owes_nothing_for_what_it_sent_while_it_was_alone(at_once: int) -> None:
    queue = FairQueue()
    busy = Flow()
    for _ in range(1000 // at_once):
        queued(queue, busy, [1] * at_once)
        taken_one_by_one(queue)
    a, b = queued(queue, busy, [1] * 3), queued(queue, Flow(), [1] * 3)
    assert set(taken_one_by_one(queue, 3)) >= {a[0], b[0]}


def test_a_batch_is_bounded_in_messages_and_bytes() -> None:
    queue = FairQueue()
    size = publishes(10).size
    queued(queue, Flow(), [10] * 10)
    assert len(queue.take(30, UNBOUNDED)) == 3
    assert len(queue.take(UNBOUNDED, 2 * size)) == 2
    assert len(queue.take(1, 1)) == 1  # never none
    assert len(queue.take(UNBOUNDED, UNBOUNDED)) == 4


def test_a_batch_is_half_as_large_where_several_publish() -> None:
    queue = FairQueue()
    queued(queue, Flow(), [10] * 10)
    queued(queue, Flow(), [100])
    assert len(queue.take(40, UNBOUNDED)) == 2
    assert len(queue.take(1, UNBOUNDED)) == 1


def test_who_publishes_little_does_not_wait_for_a_flood_to_be_stored_with_it() -> None:
    queue = FairQueue()
    flood = queued(queue, Flow(), [100] * 4)
    first, second = publishes(1), publishes(FEW)
    queue.push(first)
    queue.push(second)
    assert queue.take(UNBOUNDED, UNBOUNDED) == [first, second]
    third = publishes(1)
    queue.push(third)
    assert queue.take(UNBOUNDED, UNBOUNDED) == [third, *flood]  # a flood does not wait twice in a row
    queued(queue, Flow(), [100] * 4)
    queue.push(first := publishes(1))
    assert queue.take(UNBOUNDED, UNBOUNDED) == [first]


def test_the_end_of_a_flood_is_stored_with_it() -> None:
    queue = FairQueue()
    flood = queued(queue, Flow(), [1, 100, 1, 100, 1])
    assert queue.take(UNBOUNDED, UNBOUNDED) == flood
    assert not queue


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), max_size=60), st.integers(1, 40), st.integers(0, 60))
def test_every_flow_keeps_its_order_and_the_accounts_are_right(
    pushes: list[tuple[int, int]], count_max: int, first: int
) -> None:
    queue, flows = FairQueue(), [Flow() for _ in range(5)]
    taken: list[Submission] = []
    for number, (whose, size) in enumerate(pushes):
        queued(queue, flows[whose], [size])
        if number == first:
            taken += queue.take(count_max, UNBOUNDED)
            queue.settle(taken)
    while batch := queue.take(count_max, UNBOUNDED):
        assert queue.size >= sum(submission.size for submission in batch)
        queue.settle(batch)
        taken += batch
        settled = {submission.arrival for submission in taken}
        for arrived in range(len(pushes) + 1):
            assert queue.has_settled(arrived) == settled.issuperset(range(arrived))
    assert sorted(submission.arrival for submission in taken) == list(range(len(pushes)))
    for flow in flows:
        arrivals = [submission.arrival for submission in taken if submission.flow is flow]
        assert arrivals == sorted(arrivals)
        assert flow.unsettled == 0
    assert queue.size == 0
