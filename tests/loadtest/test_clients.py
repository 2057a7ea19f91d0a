"""Clients without a server: what becomes of them when their connections do not come about, or end."""

from typing import Any, cast

from tests.loadtest.test_trails import PING, Audience


def test_a_client_whose_link_ends_while_it_answers_reads_no_further() -> None:
    audience = Audience("ws", 1)
    (subscriber,) = audience.subscribers
    cast(Any, audience.line).send = lambda data: subscriber.ended("reset")
    subscriber.receive(memoryview(PING * 3))
    (problem,) = audience.problems.listed()
    assert (problem.kind, problem.examples) == ("closed", ["s0: reset"])
