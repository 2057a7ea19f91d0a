"""The client's promises, over any order of events: connections come and go, time passes, others publish, logs are cut.

Nothing is missed without a word, nothing comes twice, what is published is stored once and in order, and every copy
of a state ends up as the server has it.
"""

import math
from random import Random
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.client.fake_server import FakeServer
from trisync.client import feeds
from trisync.client.errors import Conflict, Gap, QueueFull, TooLarge
from trisync.client.feeds import Inbox, Start
from trisync.client.machine import Machine
from trisync.client.publishes import Publish
from trisync.client.replica import Change, Replica
from trisync.client.requests import Request
from trisync.client.status import State
from trisync.client.wire import Message, Ok

CHANNELS = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["x", "y"])
COUNTS = st.integers(1, 4)
LENGTHS = st.sampled_from([0, 300])
QUEUE_MAX = 12


class Reader:
    """A program that takes messages, and knows what must come next."""

    def __init__(self, inbox: Inbox, server: FakeServer, start: Start) -> None:
        self.inbox = inbox
        self.server = server
        self.offset = start.since

    def take(self) -> bool:
        item = self.inbox.take()
        if item is None:
            return False
        if isinstance(item, Gap):
            self.check_gap(item)
        else:
            self.check_message(item)
        return True

    def check_gap(self, gap: Gap) -> None:
        if gap.reason == "epoch":
            self.offset = 0
            return
        assert self.offset is None or gap.first == self.offset + 1, "a gap begins behind what was taken last"
        assert gap.first <= gap.last
        self.offset = gap.last

    def check_message(self, message: Message) -> None:
        if self.offset is not None:
            assert message.offset == self.offset + 1, "each offset once, in order, without a hole"
        self.offset = message.offset


class Promises(RuleBasedStateMachine):
    """A client's machine, a server, and a network that does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.usual_buffer = feeds.BUFFER_MESSAGES, feeds.OVERFULL
        feeds.BUFFER_MESSAGES, feeds.OVERFULL = 2, 1
        self.now = 1000.0
        self.server = FakeServer()
        self.machine = Machine(
            producer="p" * 16,
            timer=lambda: self.now,
            random=Random(1),
            queue_max=QUEUE_MAX,
        )
        self.to_server: list[bytes] = []
        self.readers: dict[str, Reader] = {}
        self.replicas: dict[str, Replica] = {}
        self.told: dict[str, dict[str, Change]] = {}
        """Of each replica, the newest change of each key."""
        self.published: list[tuple[Publish, Any]] = []
        self.count = 0
        self.restored = False
        self.asked: list[Request] = []

    # The network

    @precondition(lambda self: not self.server.connected)
    @rule(greet=st.booleans())
    def connect(self, greet: bool) -> None:
        if self.now >= self.machine.connect_at:
            self.machine.connecting("fake")
            self.server.connect()
            self.to_server = []
            self.machine.connected()
            if greet:
                self.carry_up(1)
                self.carry_down(1)

    @rule()
    def fail_to_connect(self) -> None:
        if not self.server.connected and self.now >= self.machine.connect_at:
            self.machine.connecting("fake")
            self.machine.lost("refused")

    @precondition(lambda self: self.server.connected)
    @rule(arrives=st.integers(0, 3))
    def drop(self, arrives: int) -> None:
        """The connection ends. Some of what the client has sent arrives all the same; no answer comes back."""
        self.carry_up(arrives)
        self.server.disconnect()
        self.machine.lost("dropped")

    @precondition(lambda self: self.server.connected)
    @rule(count=COUNTS)
    def carry_up(self, count: int) -> None:
        self.to_server += self.machine.take_output()
        for payload in self.to_server[:count]:
            self.server.receive(payload)
        del self.to_server[:count]

    @precondition(lambda self: self.server.connected and self.server.said)
    @rule(count=COUNTS)
    def carry_down(self, count: int) -> None:
        if self.machine.may_read():
            payloads = self.server.said[:count]
            del self.server.said[:count]
            self.machine.receive(payloads)
            assert self.machine.hang_up is None

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.server.connected:
            self.machine.tick()
            if self.machine.hang_up is not None:
                self.drop(0)

    # The server, and others who publish

    @rule(channel=CHANNELS, key=st.none() | KEYS, gone=st.booleans())
    def others_publish(self, channel: str, key: str | None, gone: bool) -> None:
        self.count += 1
        data = None if key is not None and gone else f"other {self.count}"
        offset = self.server.store(channel, data, key)
        self.server.tell(channel, offset)

    @rule(channel=CHANNELS, until=st.integers(1, 20))
    def trim(self, channel: str, until: int) -> None:
        self.server.trim(channel, until)

    @rule(channel=CHANNELS)
    def empty(self, channel: str) -> None:
        self.server.empty(channel)

    @rule(unavailable=st.booleans())
    def the_disk_is_full(self, unavailable: bool) -> None:
        self.server.unavailable = unavailable

    @precondition(lambda self: self.server.connected)
    @rule()
    def the_server_stops(self) -> None:
        self.server.goodbye(1700)
        while self.server.said:
            self.machine.receive([self.server.said.pop(0)])
        self.server.disconnect()
        self.machine.lost("closed")
        if self.machine.status.state is State.OFFLINE:
            assert self.machine.connect_at == self.now + 1.7

    @rule(arrives=st.integers(0, 3), message_bytes_max=st.sampled_from([300, 10_000]))
    def the_server_is_started_again_with_another_limit(self, arrives: int, message_bytes_max: int) -> None:
        if self.server.connected:
            self.drop(arrives)
        self.server.message_bytes_max = message_bytes_max

    @rule(kept=st.integers(0, 3))
    def an_old_backup_is_restored(self, kept: int) -> None:
        if self.server.connected:
            self.server.disconnect()
            self.machine.lost("killed")
        self.server.restore(kept)
        self.restored = True

    # The program

    @rule(channel=CHANNELS, count=COUNTS, length=LENGTHS)
    def publish(self, channel: str, count: int, length: int) -> None:
        for _ in range(count):
            self.count += 1
            self.try_to_publish(channel, f"mine {self.count}".ljust(length), None, None)

    @rule(channel=CHANNELS, key=KEYS, expect=st.none() | st.integers(0, 3), length=LENGTHS)
    def publish_a_key(self, channel: str, key: str, expect: int | None, length: int) -> None:
        self.count += 1
        self.try_to_publish(channel, f"mine {self.count}".ljust(length), key, expect)

    def try_to_publish(self, channel: str, data: Any, key: str | None, expect: int | None) -> Publish | None:
        room = len(self.machine.publishes) < QUEUE_MAX
        try:
            publish = self.machine.publish(channel, data, key=key, expect=expect)
        except QueueFull:
            assert not room
            return None
        except TooLarge:
            assert len(data) == self.machine.publishes.message_bytes_max == 300
            return None
        assert room
        self.published.append((publish, data))
        return publish

    @rule(channel=CHANNELS, key=KEYS, gone=st.booleans())
    def write(self, channel: str, key: str, gone: bool) -> None:
        replica = self.replicas.get(channel)
        if replica is not None and replica.ready and len(self.machine.publishes) < QUEUE_MAX:
            self.count += 1
            value = None if gone else f"mine {self.count}"
            publish = self.machine.publish(channel, value, key=key)
            replica.write(key, value, publish)
            assert replica.value(key) == value, "a write is seen at once"

    @rule(channel=CHANNELS, start=st.sampled_from([Start(), Start(since=0), Start(since=2), Start(last=3)]))
    def subscribe(self, channel: str, start: Start) -> None:
        if channel not in self.readers:
            self.readers[channel] = Reader(self.machine.subscribe(channel, start), self.server, start)

    @rule(channel=CHANNELS)
    def unsubscribe(self, channel: str) -> None:
        if channel in self.readers:
            self.machine.leave(channel, self.readers.pop(channel).inbox)

    @rule(channel=CHANNELS)
    def replicate(self, channel: str) -> None:
        if channel not in self.replicas:
            replica = self.replicas[channel] = self.machine.replicate(channel)
            told = self.told[channel] = {}
            replica.on_change = lambda change: told.update({change.key: change})
        elif not self.replicas[channel].unsettled():
            self.machine.leave(channel, self.replicas.pop(channel))

    @rule(channel=CHANNELS, count=COUNTS)
    def take(self, channel: str, count: int) -> None:
        if channel in self.readers:
            for _ in range(count):
                self.readers[channel].take()

    @rule(channel=CHANNELS)
    def ask_for_history(self, channel: str) -> None:
        self.asked.append(self.machine.request("history", {"channel": channel, "since": 0}, lambda _: None))

    # What holds at any time

    @invariant()
    def what_is_answered_is_stored_where_it_is_said(self) -> None:
        if self.restored:
            return
        for publish, data in self.published:
            if publish.settled and publish.error is None:
                assert data in [
                    log.all[publish.offset - 1].data for log in self.server.logs.values() if log.head >= publish.offset
                ]

    @invariant()
    def the_queue_is_bounded(self) -> None:
        assert len(self.machine.publishes) <= QUEUE_MAX
        assert self.machine.publishes.in_flight <= 5, "no more than the server's unanswered_max"

    # What holds once there is a connection that lasts

    def teardown(self) -> None:
        try:
            self.check_the_end()
        finally:
            feeds.BUFFER_MESSAGES, feeds.OVERFULL = self.usual_buffer

    def check_the_end(self) -> None:
        self.server.unavailable = False
        self.settle()
        self.check_publishes()
        self.check_readers()
        for channel, replica in self.replicas.items():
            state = {key: stored.data for key, stored in self.server.log(channel).state.items()}
            assert replica.ready
            assert {key: replica.value(key) for key in replica.shown_keys()} == state
            seen = {key: change.value for key, change in self.told[channel].items() if change.value is not None}
            assert seen == state, "what is seen was told"
            assert all(change.confirmed for change in self.told[channel].values())
        assert all(type(request.reply) is Ok for request in self.asked), "what is asked is answered in the end"

    def settle(self) -> None:
        for _ in range(200):
            if not self.server.connected:
                self.now = max(self.now, self.machine.connect_at)
                self.connect(greet=False)
            self.now += 0.01 if self.machine.publishes.resend_at == math.inf else 10.0
            self.machine.tick()
            self.carry_up(1000)
            while any(reader.take() for reader in self.readers.values()):
                pass
            quiet = not self.server.said
            self.carry_down(1000)
            self.to_server += self.machine.take_output()
            if quiet and not len(self.machine.publishes) and not self.to_server:
                return
        raise AssertionError("it does not come to rest")

    def check_publishes(self) -> None:
        stored = [stored.data for log in self.server.logs.values() for stored in log.all]
        for publish, data in self.published:
            assert publish.settled, "nothing is dropped silently"
            if publish.error is not None:
                assert isinstance(publish.error, Conflict | TooLarge)
                # What this server restores is of no one moment: it may have a message, and not its verdict.
                assert self.restored or data not in stored, "what is refused is not stored"
            elif not self.restored:
                assert stored.count(data) == 1, "what is published is stored once"
        if not self.restored:
            for log in self.server.logs.values():
                mine = [int(entry.data[5:]) for entry in log.all if str(entry.data).startswith("mine")]
                assert mine == sorted(mine), "one client's publishes are stored in order"

    def check_readers(self) -> None:
        for channel, reader in self.readers.items():
            log, cursor = self.server.log(channel), reader.inbox.cursor
            assert cursor is not None
            # Where another log begins is known only by its first message.
            assert max(cursor, log.trimmed) == log.head, "nothing is missed"


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
