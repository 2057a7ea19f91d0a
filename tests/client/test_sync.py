"""The blocking client: the same promises, from any thread."""

import threading

import pytest

import trisync
from tests.harness import PATIENCE_S
from trisync.client import Change, Conflict, Gap, NotConnected, State


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


def test_a_state_and_its_changes(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url) as client, client.state(channel) as doc:
        doc["title"] = "Hello"
        doc.flush()
        assert doc.update("count", lambda n: (n or 0) + 1) == 1
        assert dict(doc) == {"title": "Hello", "count": 1}
        changes = doc.changes()
        del doc["title"]
        assert next(changes).value is None
        assert doc.set("title", "again") == 4
        while (change := next(changes)) != Change("title", "again", confirmed=True):
            assert change.key == "title"
        assert (len(doc), doc.confirmed("title")) == (2, (4, "again"))


def test_who_is_there(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url, name="script") as client, client.presence(channel) as members:
        assert list(members) == [members.me]
        assert members[members.me] == client.members(channel)[0]
        assert len(members) == 1


def test_what_goes_wrong_is_raised_as_it_is(tcp_url: str, channel: str) -> None:
    with trisync.connect_sync(tcp_url) as client:
        with pytest.raises(Conflict):
            client.publish(channel, 1, key="k", expect=1)
        client.publish(channel, 1)
        with client.subscribe(channel, since=7) as messages:
            with pytest.raises(Gap):
                next(messages)
            assert next(messages).data == 1
        with client.subscribe(channel, since=7, gaps="yield") as both:
            assert isinstance(next(both), Gap)
    with pytest.raises(NotConnected), trisync.connect_sync("tcp://127.0.0.1:9", wait_s=0):
        pass
    with pytest.raises(ZeroDivisionError), trisync.connect_sync(tcp_url):
        raise ZeroDivisionError


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
