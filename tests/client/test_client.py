"""The client against a real server, through both doors, under asyncio and Trio."""

import logging

import msgspec
import pytest

import trisync
from tests.client.conftest import NOBODY, Run
from trisync.client import BadRequest, Conflict, Gap, Message, NotConnected, State, TooLarge


def test_what_is_published_comes_to_subscribers_once_and_in_order(run: Run, url: str, channel: str) -> None:
    async def main() -> None:
        async with (
            trisync.connect(url, name="alice") as alice,
            trisync.connect(url) as bob,
            bob.subscribe(channel) as messages,
        ):
            assert [await alice.publish(channel, {"n": n}) for n in range(3)] == [1, 2, 3]
            received = [await anext(messages) for _ in range(3)]
            assert [(message.offset, message.sender, message.data) for message in received] == [
                (1, "alice", {"n": 0}),
                (2, "alice", {"n": 1}),
                (3, "alice", {"n": 2}),
            ]
            assert (messages.offset, len(messages.epoch)) == (3, 16)

    run(main)


def test_a_subscription_begins_where_it_is_told_to(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            for text in ("one", "two", "three"):
                await client.publish(channel, text)
            async with client.subscribe(channel, last=2) as messages:
                assert [(await anext(messages)).data, (await anext(messages)).data] == ["two", "three"]
            async with client.subscribe(channel, since=0) as messages:
                assert messages.offset == 0, "whatever has come already, nothing was taken out"
                assert (await anext(messages)).data == "one"
                offset, epoch = messages.offset, messages.epoch
            async with client.subscribe(channel, since=offset, epoch=epoch) as messages:
                assert (await anext(messages)).data == "two"
            async with client.subscribe(f"{channel}:empty", last=2) as messages:
                assert (messages.offset, messages.epoch) == (0, epoch)

    run(main)


def test_another_log_is_a_gap_that_stops_the_loop_unless_it_is_asked_for(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            await client.publish(channel, "one")
            async with client.subscribe(channel, since=1, epoch="another") as messages:
                assert (messages.offset, messages.epoch) == (1, "another"), "the gap is still to be taken"
                with pytest.raises(Gap, match=r"the log .* was replaced") as caught:
                    await anext(messages)
                assert caught.value.reason == "epoch"
                assert (messages.offset, len(messages.epoch)) == (0, 16)
                assert (await anext(messages)).data == "one"
            async with client.subscribe(channel, since=7, gaps="yield") as both:
                items = [await anext(both), await anext(both)]
                assert items[0] == Gap(channel, "epoch")
                assert isinstance(items[1], Message)

    run(main)


def test_data_is_passed_on_digit_for_digit_and_may_be_decoded_as_a_type(run: Run, url: str, channel: str) -> None:
    class Point(msgspec.Struct):
        x: float
        label: str

    async def main() -> None:
        async with trisync.connect(url) as client, client.subscribe(channel) as messages:
            await client.publish(channel, msgspec.Raw(b'{"x":1.50,"label":"\xc3\xa9"}'))
            message = await anext(messages)
            assert bytes(message.json) == b'{"x":1.50,"label":"\xc3\xa9"}'
            assert message.data_as(Point) == Point(1.5, "é")
            assert b'"data":{"x":1.50,' in message.to_json()

    run(main)


def test_refusals_have_the_class_of_their_code(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            await client.publish(channel, "a", key="k")
            with pytest.raises(Conflict) as conflict:
                await client.publish(channel, "b", key="k", expect=0)
            assert (conflict.value.code, conflict.value.offset, conflict.value.data) == ("conflict", 1, "a")
            with pytest.raises(BadRequest):
                await client.publish("no such name", 1)
            with pytest.raises(BadRequest):
                await client.publish(channel, 1, merge=True)
            with pytest.raises(BadRequest, match="64 deep"):
                await client.publish(channel, msgspec.Raw(b"[" * 64 + b"]" * 64))
            with pytest.raises(TooLarge):
                await client.publish(channel, "x" * (1 << 20))
            assert await client.publish(channel, "they harm nobody") == 2

    run(main)


def test_an_ephemeral_message_goes_as_it_was_at_the_call(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.subscribe(channel) as messages:
            cursor = {"x": 1.5}
            client._machine.flash(channel, cursor, lambda _: None)
            cursor["x"] = float("nan")
            assert (await anext(messages)).data == {"x": 1.5}

    run(main)


def test_a_message_as_large_as_the_server_allows_goes_both_ways(run: Run, url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(url) as client, client.subscribe(channel) as messages:
            await client.publish(channel, "x" * 1_000_000)
            assert len((await anext(messages)).data) == 1_000_000

    run(main)


def test_an_ephemeral_message_is_seen_and_not_stored(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.subscribe(channel) as messages:
            assert await client.publish(channel, "typing", ephemeral=True) == 0
            message = await anext(messages)
            assert (message.offset, message.data) == (None, "typing")
            assert (await client.history(channel)).messages == []
        async with trisync.connect(NOBODY, wait_s=None) as client:
            with pytest.raises(NotConnected):
                await client.publish(channel, "typing", ephemeral=True)

    run(main)


def test_many_publishes_are_on_their_way_together_and_keep_their_order(run: Run, url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(url) as client, client.subscribe(channel) as messages:
            receipts = []
            for number in range(2000):
                await client.room()
                receipts.append(client.post(channel, number))
            with pytest.raises(RuntimeError, match="no answer yet"):
                receipts[-1].result()
            assert [await receipt for receipt in receipts] == list(range(1, 2001))
            assert (receipts[-1].done, receipts[-1].result()) == (True, 2000)
            assert [(await anext(messages)).data for _ in range(2000)] == list(range(2000))

    run(main)


def test_who_answers_each_message_does_not_wait_for_ever_however_many_there_are(
    run: Run, tcp_url: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers to its own publishes stand behind messages that it has not taken yet."""
    monkeypatch.setattr("trisync.client.feeds.BUFFER_MESSAGES", 10)

    async def main() -> None:
        async with trisync.connect(tcp_url) as client, trisync.connect(tcp_url) as other:
            for number in range(3000):
                await other.room()
                other.post(channel, number)
            await other.flush()
            async with client.subscribe(channel, since=0) as messages:
                for number in range(200):
                    assert (await anext(messages)).data == number
                    await client.publish(channel + "-answers", number)
                for number in range(200, 3000):
                    assert (await anext(messages)).data == number

    run(main)


def test_what_nobody_takes_stays_at_the_server(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, trisync.connect(tcp_url) as other:
            async with client.subscribe(channel) as messages:
                for _ in range(60):
                    other.post(channel, "x" * 500_000)
                    await other.room()
                await other.flush()
                # 30 MB were published; nothing here would stop it from being read, were it not for the buffer's bound.
                inbox = messages._inbox
                assert inbox is not None
                assert inbox.cursor is not None
                assert inbox.cursor < 30
                assert [(await anext(messages)).offset for _ in range(60)] == list(range(1, 61))

    run(main)


def test_history_comes_in_pages(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            for number in range(5):
                client.post(channel, number)
            await client.flush()
            newest = await client.history(channel, limit=2)
            assert ([message.data for message in newest.messages], newest.more, newest.gap) == ([3, 4], False, None)
            first = await client.history(channel, since=0, limit=2)
            assert ([message.data for message in first.messages], first.more, first.offset) == ([0, 1], True, 5)

    run(main)


def test_who_uses_the_producer_of_another_client_takes_its_place(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        producer = channel[-40:].rjust(16, "p")
        async with trisync.connect(tcp_url, producer=producer) as first:
            await first.publish(channel, 1)
            async with trisync.connect(tcp_url, producer=producer) as second:
                await second.publish(channel, 2)
                with pytest.raises(trisync.client.Fenced):
                    await first.publish(channel, 3)
                assert first.status.state is State.CLOSED
            with pytest.raises(trisync.client.Fenced):
                await first.history(channel)

    run(main)


def test_the_log_tells_the_story_of_a_connection(run: Run, tcp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            assert client.status.state is State.ONLINE

    caplog.set_level(logging.DEBUG, "trisync.client")
    run(main)
    assert "connecting to tcp://127.0.0.1:" in caplog.messages[0]
    assert "online with trisync/" in caplog.messages[1]
