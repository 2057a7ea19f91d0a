"""The driver with a network in memory: what only shows when sends do not end, or what is driven has a fault."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from trisync.client.aio import connect
from trisync.client.driver import Driver
from trisync.client.errors import Closed, NotConnected
from trisync.client.machine import Machine
from trisync.client.status import State
from trisync.client.transports import Transport, TransportError


class Network:
    """A connection to a server that answers the hello; then its line may be clogged: nothing can be sent any more."""

    def __init__(self) -> None:
        self.owes = False
        self.clogged = False
        self.slow_parts = 0
        """How often it takes a part of what is sent, and 8 seconds for each."""
        self.on_part: Callable[[], None] = lambda: None
        self.aborted = 0
        self._said, self._heard = trio.open_memory_channel[bytes](100)

    async def send(self, payloads: Sequence[bytes]) -> None:
        if self.clogged:
            await trio.sleep_forever()
        for _ in range(self.slow_parts):
            await trio.sleep(8)
            self.on_part()
        self.owes = False
        for payload in payloads:
            request = json.loads(payload)
            if request["op"] == "hello":
                hello = {"op": "ok", "id": request["id"], "seq": 0, "epoch": "e"}
                self._said.send_nowait(json.dumps(hello).encode())
            elif request["op"] == "publish":
                self._said.send_nowait(json.dumps({"op": "ok", "id": request["id"], "offset": 1}).encode())

    async def receive(self) -> list[bytes]:
        try:
            return [await self._heard.receive()]
        except trio.EndOfChannel:
            raise TransportError("the server closed the connection") from None

    async def aclose(self) -> None:
        pass

    async def abort(self) -> None:
        self.aborted += 1

    async def say_something_that_is_to_be_answered(self) -> None:
        self.owes = True
        await self._said.send(b'{"op":"pong","id":0}')

    async def complain_and_close(self) -> None:
        await self._said.send(b'{"op":"error","code":"internal","message":"a bug, reference 7","retry":true}')
        self._said.close()


def machine() -> Machine:
    return Machine(producer="p" * 16, timer=trio.current_time, random=Random(1))


async def until_online(driven: Machine, driver: Driver) -> None:
    while driven.status.state is not State.ONLINE:
        await driver.changed.wait()


@asynccontextmanager
async def online(network: Network) -> AsyncIterator[tuple[Machine, Driver]]:
    """A machine that is driven over this network, and its driver; closed at the end."""

    async def open_it() -> Transport:
        return network

    driven = machine()
    driver = Driver(driven, open_it, "memory")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        await until_online(driven, driver)
        yield driven, driver
        driven.close("enough")


async def test_a_line_that_takes_nothing_any_more_is_given_up(autojump_clock: MockClock) -> None:
    networks: list[Network] = []

    async def open_one() -> Transport:
        networks.append(Network())
        return networks[-1]

    driven = machine()
    driver = Driver(driven, open_one, "memory")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        await until_online(driven, driver)
        networks[0].clogged = True
        publish = driven.publish("lobby", 1)
        while driven.status.state is State.ONLINE:
            await driver.changed.wait()
        assert driven.status.reason == "the server said nothing for 20 s"
        assert not publish.settled
        assert networks[0].aborted == 1
        await until_online(driven, driver)
        assert len(networks) == 2
        driven.close("enough")
    assert networks[1].aborted == 1


async def test_a_line_that_takes_its_time_over_a_large_message_is_given_it(autojump_clock: MockClock) -> None:
    network = Network()
    async with online(network) as (driven, driver):
        network.slow_parts = 10
        publish = driven.publish("lobby", 1)
        while not publish.settled:
            await driver.changed.wait()
            assert driven.status.state is State.ONLINE
        assert publish.offset == 1


async def test_what_the_protocol_owes_is_sent_though_the_program_says_nothing(autojump_clock: MockClock) -> None:
    network = Network()
    async with online(network):
        await network.say_something_that_is_to_be_answered()
        await trio.sleep(1)
        assert not network.owes


async def test_why_a_connection_ended_is_what_the_server_said_before_it_closed_it(autojump_clock: MockClock) -> None:
    network = Network()
    async with online(network) as (driven, driver):
        await network.complain_and_close()
        while driven.status.state is State.ONLINE:
            await driver.changed.wait()
        assert driven.status.reason == "a bug, reference 7 (internal)"


@pytest.mark.parametrize(("error", "closed"), [(OSError("no route"), False), (TransportError("no"), False),
                                               (RuntimeError("a bug"), True)])  # fmt: skip
async def test_what_networks_do_is_tried_again_and_a_fault_of_its_own_closes_the_client(
    autojump_clock: MockClock, error: Exception, closed: bool
) -> None:
    async def fail() -> Transport:
        raise error

    driven = machine()
    driver = Driver(driven, fail, "memory")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        while driven.status.state is State.CONNECTING:
            await driver.changed.wait()
        assert driven.status.state is (State.CLOSED if closed else State.OFFLINE)
        assert str(error) in driven.status.reason
        nursery.cancel_scope.cancel()
    assert (type(driven.error) is Closed) is closed


async def test_a_door_that_does_not_open_is_given_up_in_time(autojump_clock: MockClock) -> None:
    async def hang() -> Transport:
        await trio.sleep_forever()

    driven = machine()
    driver = Driver(driven, hang, "memory")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        while driven.status.state is not State.OFFLINE:
            await driver.changed.wait()
        assert driven.status.reason == "no connection to memory within 10 s"
        nursery.cancel_scope.cancel()


async def test_who_enters_a_client_does_not_wait_longer_than_was_said_for_a_door_that_does_not_open(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> Transport:
        await trio.sleep_forever()

    monkeypatch.setattr("trisync.client.aio.open_transport", hang)
    with pytest.raises(NotConnected, match=r"no answer within 0\.5 s"):
        await connect(wait_s=0.5).__aenter__()
    assert trio.current_time() == 0.5
