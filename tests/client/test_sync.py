"""The blocking client: the same promises, from any thread."""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import trisync
from tests.client.conftest import NOBODY
from tests.harness import PATIENCE_S, server_process
from trisync.client import (
    Change,
    Closed,
    Conflict,
    Gap,
    Message,
    NotConnected,
    QueueFull,
    State,
    SyncSubscription,
    Unsettled,
)
from trisync.client.sync_feeds import Bridge


def test_it_publishes_subscribes_and_reads(url: str, channel: str) -> None:
    with trisync.connect_sync(url, name="script") as client:
        assert client.status.state is State.ONLINE
        receipts = [client.post(channel, number) for number in range(100)]
        client.flush()
        assert [receipt.result(PATIENCE_S) for receipt in receipts] == list(range(1, 101))
        assert receipts[0].done
        with client.subscribe(channel, last=100) as messages:
            assert [next(messages).data for _ in range(100)] == list(range(100))
            assert (messages.offset, len(messages.epoch)) == (100, 16)
        assert [message.sender for message in client.history(channel, limit=1).messages] == ["script"]


def test_a_subscription_that_is_entered_again_begins_again(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url) as client:
        for number in range(5):
            client.publish(channel, number)
        messages = client.subscribe(channel, since=0)
        for _ in range(2):
            with messages:
                assert messages.offset == 0
                assert [next(messages).data, next(messages).data] == [0, 1]
                assert messages.offset == 2


def test_threads_may_share_a_subscription(tcp_url: str, channel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with trisync.connect_sync(tcp_url) as client, client.subscribe(channel, since=0) as messages:
        client.publish(channel, "for another thread")
        call_within = Bridge.call_within
        others: list[Message] = []

        def another_is_faster(bridge: Bridge, *args: Any) -> Any:
            result = call_within(bridge, *args)
            if not others and messages._taken:
                others.append(messages.next())
                client.publish(channel, "for this one")
            return result

        monkeypatch.setattr(Bridge, "call_within", another_is_faster)
        assert (next(messages).data, others[0].data) == ("for this one", "for another thread")


def test_of_messages_that_come_together_each_thread_that_waits_has_one(
    tcp_url: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, waiting = SyncSubscription._fill, threading.Semaphore(0)

    async def waits(messages: SyncSubscription[Message]) -> None:
        waiting.release()
        await fill(messages)

    monkeypatch.setattr(SyncSubscription, "_fill", waits)
    with trisync.connect_sync(tcp_url) as client, client.subscribe(channel) as messages, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(lambda: messages.next(PATIENCE_S).data) for _ in range(2)]
        for _ in taken:
            waiting.acquire(timeout=PATIENCE_S)
        bridge = client._bridge
        bridge.call(lambda: [bridge.client.post(channel, number) for number in range(2)])
        assert {future.result() for future in taken} == {0, 1}


def test_who_waits_no_time_at_all_has_what_is_there(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url) as client, client.subscribe(channel) as messages:
        for text in ("there", "whose answer comes behind it"):
            client.publish(channel, text)
        assert messages.next(0).data == "there"


def test_who_waits_for_a_message_or_an_answer_may_have_enough_of_it_and_loses_nothing(
    tcp_url: str, channel: str
) -> None:
    with trisync.connect_sync(tcp_url) as client, client.subscribe(channel) as messages:
        for timeout_s in (0, 0.01):
            with pytest.raises(TimeoutError, match=f"^nothing came within {timeout_s} s$"):
                messages.next(timeout_s)
        receipts = [client.post(channel, number) for number in range(3)]
        assert [item.data for item in (messages.next(PATIENCE_S), messages.next(), next(messages))] == [0, 1, 2]
        assert [receipt.result(0) for receipt in receipts] == [1, 2, 3]
    offline = trisync.connect_sync(NOBODY, wait_s=None, close_s=0).open()
    receipt = offline.post(channel, 1)
    with pytest.raises(TimeoutError, match=r"^nothing came within 0\.01 s: .*connect"):
        receipt.result(0.01)
    with pytest.raises(Unsettled):
        offline.close()


def test_a_state_and_its_changes(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url) as client, client.state(channel) as doc:
        doc["title"] = "Hello"
        doc.flush()
        assert doc.update("count", lambda n: (n or 0) + 1) == 1
        assert dict(doc) == {"title": "Hello", "count": 1}
        changes, items, values = doc.changes(), iter(doc.items()), iter(doc.values())
        del doc["title"]
        assert next(change for change in changes if change.key == "title").value is None  # behind what confirms `count`
        assert (dict(items), set(values)) == ({"title": "Hello", "count": 1}, {"Hello", 1}), "as it was"
        assert doc.set("title", "again") == 4
        while (change := next(changes)) != Change("title", "again", confirmed=True):
            assert change.key == "title"
        assert (len(doc), doc.confirmed("title")) == (2, (4, "again"))


def test_what_is_changed_by_a_function_of_the_program_is_changed_in_its_thread(tcp_url: str, channel: str) -> None:
    """So that it may read the document, or wait."""
    seen: list[Any] = []
    with trisync.connect_sync(tcp_url) as client, trisync.connect_sync(tcp_url) as other, client.state(channel) as doc:
        doc["step"] = 2

        def change(count: Any) -> Any:
            seen.append((count, threading.current_thread()))
            if len(seen) == 1:
                other.publish(channel, 10, key="count")
            return (count or 0) + doc["step"]

        assert doc.update("count", change) == 12
        assert {key: word.data for key, word in client.words(channel).items()} == dict(doc)
        word = client.word(channel, "count")
        assert word is not None
        assert word.data == 12
    assert seen == [(None, threading.current_thread()), (10, threading.current_thread())]


def test_who_is_there(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url, name="script") as client, client.presence(channel) as members:
        assert list(members) == [members.me]
        assert members[members.me] == client.members(channel)[0]
        assert len(members) == 1
        changes = members.changes()
        with trisync.connect_sync(tcp_url, name="bob") as bob, bob.subscribe(channel):
            joined = next(changes)
            assert (joined.kind, joined.member.name) == ("joined", "bob")


def test_it_has_all_that_the_asynchronous_one_has() -> None:
    """Where it blocks by itself until there is room, nobody has to wait for that."""
    lacks = {"Client": {"room"}, "Document": set(), "Roster": set(), "Subscription": {"take_some"}}
    for name, lacking in lacks.items():
        has = {each for each in dir(getattr(trisync.client, name)) if not each.startswith("_")}
        assert has - set(dir(getattr(trisync.client, f"Sync{name}"))) == lacking


def test_what_becomes_of_the_connection_and_of_writes_is_told(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        client = trisync.connect_sync(f"tcp://127.0.0.1:{server.tcp_port}", close_s=0).open()
        statuses = client.status_changes()
        with client.state("doc") as doc:
            doc.set("title", "Hello")
            assert doc.pending == 0
            server.stop()
            assert next(statuses).state in (State.OFFLINE, State.CONNECTING)
            doc["title"] = "again"
            assert doc.pending == 1
        with pytest.raises(Unsettled):
            client.close()
        with pytest.raises(Closed):
            next(statuses)


def test_a_value_that_cannot_be_kept_is_not_stored_either(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url) as client, client.state(channel) as doc:
        for value in ({1}, float("nan"), object(), msgspec.Raw(b"{")):
            with pytest.raises((TypeError, ValueError)):
                doc["k"] = value
            assert "k" not in doc
        doc.set("k", 2)
        assert [message.data for message in client.history(channel).messages] == [2]


def test_what_goes_wrong_is_raised_as_it_is(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url) as client:
        with pytest.raises(Conflict):
            client.publish(channel, 1, key="k", expect=1)
        client.publish(channel, 1)
        with client.subscribe(channel, since=7) as messages:
            with pytest.raises(Gap):
                next(messages)
            assert next(messages).data == 1
        with client.subscribe(channel, since=7, epoch="another", gaps="yield") as both:
            assert (both.offset, both.epoch) == (7, "another")
            assert isinstance(next(both), Gap)
            assert (both.offset, len(both.epoch)) == (0, 16)
        with pytest.raises(ValueError, match="gaps is 'raise' or 'yield', not 'skip'"):
            client.subscribe(channel, gaps="skip")  # type: ignore[call-overload]
    with pytest.raises(NotConnected), trisync.connect_sync(NOBODY, wait_s=0):
        pass
    with pytest.raises(ZeroDivisionError), trisync.connect_sync(tcp_url):
        raise ZeroDivisionError


def test_who_is_closed_says_so_whatever_it_is_asked(tcp_url: str, channel: str) -> None:
    """Neither a subscription nor anything else that was not left keeps the client from being closed."""
    client = trisync.connect_sync(tcp_url).open()
    receipts = [client.post(channel, number) for number in range(3)]
    messages = client.subscribe(channel, since=0).__enter__()
    doc = client.state(channel).__enter__()
    doc["title"] = "Hello"
    changes = doc.changes()
    members = client.presence(channel).__enter__()
    client.close()
    asked: list[Callable[[], object]] = [
        lambda: client.publish(channel, 1),
        lambda: client.publish(channel, 1, ephemeral=True),
        lambda: client.post(channel, 1),
        client.flush,
        client.nudge,
        lambda: client.history(channel),
        lambda: client.members(channel),
        lambda: client.words(channel),
        lambda: client.word(channel, "title"),
        lambda: client.subscribe(channel).__enter__(),
        lambda: client.state(channel).__enter__(),
        lambda: client.presence(channel).__enter__(),
        lambda: list(messages),
        lambda: list(changes),
        lambda: dict(doc),
        lambda: doc["title"],
        lambda: doc.set("title", 1),
        lambda: doc.update("title", lambda _: 1),
        lambda: dict(members),
    ]
    for ask in asked:
        with pytest.raises(Closed, match="the client is closed: the program closed it"):
            ask()
    assert client.status.state is State.CLOSED
    assert [receipt.result() for receipt in receipts] == [1, 2, 3]
    for entered in (messages, doc, members):
        entered.__exit__(None, None, None)
    with client:
        assert client.publish(channel, "again") == 5
        with pytest.raises(Closed):
            dict(doc)


def test_who_waits_in_a_thread_is_told_that_the_client_was_closed(tcp_url: str, channel: str) -> None:
    client = trisync.connect_sync(tcp_url).open()
    client.publish(channel, 1)
    reading = threading.Event()

    def read() -> None:
        with client.subscribe(channel, since=0) as messages:
            for _ in messages:
                reading.set()

    with ThreadPoolExecutor() as threads:
        reader = threads.submit(read)
        assert reading.wait(PATIENCE_S)
        client.close()
        with pytest.raises(Closed, match="the client is closed: the program closed it"):
            reader.result(PATIENCE_S)


def test_a_wait_that_is_broken_off_takes_no_message_with_it(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url) as client, client.subscribe(channel) as messages:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                next(messages)
        finally:
            signal.signal(signal.SIGALRM, before)
        client.publish(channel, 1)
        client.publish(channel, 2)
        assert [next(messages).data, next(messages).data] == [1, 2]


def test_what_it_gives_is_printed_as_that_of_the_asynchronous_one(tcp_url: str, channel: str) -> None:
    client = trisync.connect_sync(tcp_url, name="script")
    assert str(client) == "<SyncClient: not open>"
    with client, client.state(channel) as doc, client.subscribe(channel) as messages:
        doc.set("title", "Hello")
        assert str(client).startswith("<SyncClient: online, connected to")
        assert str(doc) == f"SyncDocument({channel!r}, {{'title': 'Hello'}})"
        assert str(next(messages)).endswith("data='Hello')")
        assert str(messages) == f"<SyncSubscription to {channel!r}, offset 1>"
        assert str(client.post(channel, 1)).startswith("<SyncReceipt: ")
    assert str(doc) == f"SyncDocument({channel!r}, {{'title': 'Hello'}})"


def test_it_is_opened_and_closed_by_programs_that_live_longer_than_a_block(tcp_url: str, channel: str) -> None:
    client = trisync.connect_sync(tcp_url)
    with pytest.raises(RuntimeError, match="not open"):
        client.publish(channel, 1)
    client.open()
    with pytest.raises(RuntimeError, match="open already"):
        client.open()
    threads = [threading.Thread(target=client.publish, args=(channel, number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(message.data for message in client.history(channel).messages) == list(range(8))
    client.close()
    client.close()


def test_a_call_may_have_enough_of_waiting_and_what_it_publishes_is_published_all_the_same(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        port = server.tcp_port
        client = trisync.connect_sync(f"tcp://127.0.0.1:{port}", call_s=0.2).open()
        assert client.publish("lobby", 1) == 1
        doc, changes = client.state("doc"), client.status_changes()
        server.stop(signal.SIGKILL)
    next(changes)  # it knows by now that there is no connection
    for ask in (
        lambda: client.publish("lobby", 2),
        lambda: client.history("lobby"),
        lambda: client.members("lobby"),
        lambda: client.flush(),
        lambda: doc.__enter__(),
        lambda: client.post("lobby", 3).result(),
    ):
        with pytest.raises(TimeoutError, match=r"^nothing came within 0\.2 s: .*connect"):
            ask()
    with server_process(tmp_path, tcp_port=port):
        client.nudge()  # its pauses have become long by now
        client.close()
        with trisync.connect_sync(f"tcp://127.0.0.1:{port}") as other:
            assert [message.data for message in other.history("lobby").messages] == [1, 2, 3]


def test_who_posts_to_a_queue_that_stays_full_is_told_that_it_was_not_taken() -> None:
    client = trisync.connect_sync(NOBODY, wait_s=None, close_s=0, call_s=0, queue_max=1).open()
    client.post("lobby", 1)
    with pytest.raises(QueueFull):
        client.post("lobby", 2)
    with pytest.raises(Unsettled, match="1 publish had no answer"):
        client.close()
