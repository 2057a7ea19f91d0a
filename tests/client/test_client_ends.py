"""What goes wrong for a client, and how it ends: refusals, queues, closing, and what is told of it."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import trisync
from tests.client.conftest import NOBODY, Run
from tests.client.machine_talk import Talk
from tests.harness import PATIENCE_S
from trisync.client import (
    BadRequest,
    Client,
    Closed,
    Conflict,
    Document,
    Fenced,
    Forbidden,
    Message,
    NotConnected,
    QueueFull,
    Roster,
    State,
    Subscription,
    TooLarge,
    Unsettled,
    receipts,
)
from trisync.client.feeds import Start
from trisync.client.machine import Machine

Entered = Subscription[Message] | Document | Roster


def errors_told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_exceptions_of_a_program_come_out_as_they_are(run: Run, tcp_url: str) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with trisync.connect(tcp_url):
                raise ZeroDivisionError
        with pytest.raises(Conflict):
            async with trisync.connect(tcp_url) as client:
                await client.publish("exceptions", 1, key="k", expect=99)

    run(main)


def test_a_server_that_is_not_there_is_said_at_the_entrance(run: Run) -> None:
    async def main() -> None:
        for wait_s in (0, 0.3):
            with pytest.raises(NotConnected, match=r"no connection to tcp://127\.0\.0\.1:9: Connection refused"):
                async with trisync.connect(NOBODY, wait_s=wait_s):
                    pass

    run(main)


def test_a_server_that_does_not_answer_in_time_is_said_at_the_entrance(run: Run) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as nobody_accepts:
            url = f"tcp://127.0.0.1:{nobody_accepts.getsockname()[1]}"
            with pytest.raises(NotConnected, match=f"connecting to {url}: no answer within 0.01 s"):
                async with trisync.connect(url, wait_s=0.01):
                    pass

    run(main)


def test_why_there_was_no_connection_is_said_also_while_another_is_tried(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def refuse_once(*_: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        await anyio.sleep_forever()

    async def main() -> None:
        with pytest.raises(NotConnected, match=r"no connection to tcp://127\.0\.0\.1:9: Connection refused"):
            async with trisync.connect(NOBODY, wait_s=1):
                pass

    monkeypatch.setattr("trisync.client.aio.open_transport", refuse_once)
    run(main)
    assert tries == 2


def test_a_client_that_the_server_refuses_is_closed(run: Run, tcp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of a later version, whose rules are others."""
    monkeypatch.setattr("trisync.client.options.check_hello", lambda *_: None)

    async def main() -> None:
        with pytest.raises(BadRequest, match="name is 1-64 characters"):
            async with trisync.connect(tcp_url, name=""):
                pass

    run(main)


def test_the_queue_is_bounded_and_what_is_left_in_it_is_said(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with pytest.raises(Unsettled, match="2 publishes"):  # noqa: PT012 (it is the leaving that raises)
            async with trisync.connect(NOBODY, wait_s=None, queue_max=2, close_s=0.05) as client:
                receipts = [client.post("lobby", 1), client.post("lobby", 2)]
                with pytest.raises(QueueFull):
                    client.post("lobby", 3)
                with pytest.raises(QueueFull):
                    await client.publish("lobby", 3)
        with pytest.raises(Closed):
            await receipts[0]
        with pytest.raises(Closed):
            client.post("lobby", 4)
        assert client.status.state is State.CLOSED
        del receipts

    run(main)
    [told] = errors_told(caplog)
    assert told.startswith("closed with 2 publishes that had no answer")


def test_one_publish_is_not_called_several() -> None:
    assert str(Unsettled(1)) == "1 publish had no answer when the client was closed, and may be stored or not"
    assert str(Unsettled(2)).startswith("2 publishes had no answer")


def test_a_refusal_that_nobody_waits_for_is_said(
    run: Run, tcp_url: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            client.post(channel, 1, key="k", expect=5)
            await client.publish(channel, 2)

    run(main)
    [told] = errors_told(caplog)
    assert told.startswith("a publish failed, and nobody awaited its receipt: ")


def test_who_flushes_or_updates_does_not_take_a_refusal_from_who_has_the_receipt(
    run: Run, tcp_url: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.state(channel) as doc:
            receipts = [client.post(channel, 1, key="k", expect=5)]
            await client.flush()
            receipts.append(doc._write("k", 1, expect=5))
            await doc.update("k", lambda _: 2)
            for receipt in receipts:
                with pytest.raises(Conflict):
                    await receipt

    run(main)
    assert not errors_told(caplog)


def test_who_flushes_or_leaves_waits_for_all_publishes_and_not_for_the_last_one_alone(
    run: Run, tcp_url: str, channel: str
) -> None:
    async def main() -> None:
        for leaving in (False, True):
            # The server's limit is not known yet: what is over it is settled once it is, and so first.
            async with trisync.connect(tcp_url, wait_s=None) as client:
                receipt, too_large = client.post(channel, "x" * 900_000), client.post(channel, "y" * (1 << 20))
                if not leaving:
                    await client.flush()
                    assert receipt.done
            assert receipt.done
            assert await receipt
            with pytest.raises(TooLarge):
                await too_large

    run(main)


@pytest.mark.parametrize("error", [None, Fenced("fenced", "another client uses this producer")])
def test_who_waits_for_publishes_hears_that_the_client_has_ended_meanwhile(
    run: Run, channel: str, error: Fenced | None
) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            client = trisync.connect(NOBODY, wait_s=None)
            with pytest.raises(Fenced if error else Closed) as raised:  # noqa: PT012 - leaving it waits as well
                async with client:
                    receipt = client.post(channel, 1)
                    tasks.start_soon(end_soon, client)
            with pytest.raises(type(raised.value)):
                await client.flush()
            with pytest.raises(type(raised.value)):
                await receipt

    async def end_soon(client: Client) -> None:
        await anyio.wait_all_tasks_blocked()
        client._machine.close("it was closed", error)

    run(main)
    with pytest.raises(RuntimeError, match="entered first"):
        run(trisync.connect(NOBODY).flush)


def test_who_leaves_a_client_that_had_ended_by_itself_hears_what_is_not_settled(run: Run, channel: str) -> None:
    fenced = Fenced("fenced", "another client uses this producer")

    async def main() -> None:
        with pytest.raises(Unsettled) as raised:  # noqa: PT012 - it is raised by leaving
            async with trisync.connect(NOBODY, wait_s=None) as client:
                for number in range(5):
                    client.post(channel, number)
                client._machine.close("it was closed", fenced)
        assert raised.value.count == 5
        assert raised.value.__cause__ is fenced

    run(main)


def test_who_is_cancelled_again_while_leaving_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """With task.cancel() of asyncio, against which there is no shield."""

    async def connect_for_ever(*_: object) -> None:
        await anyio.sleep_forever()

    async def use(client: Client) -> None:
        async with client:
            await anyio.sleep_forever()

    async def main() -> None:
        client = trisync.connect(NOBODY, wait_s=None)
        user = asyncio.create_task(use(client))
        while client.status.state is not State.CLOSED:
            await anyio.wait_all_tasks_blocked()
            user.cancel()
            await asyncio.sleep(0)
        user.cancel()
        with pytest.raises(asyncio.CancelledError):
            await user
        assert asyncio.all_tasks() == {asyncio.current_task()}

    monkeypatch.setattr("trisync.client.aio.open_transport", connect_for_ever)
    anyio.run(main, backend="asyncio")


def test_a_publish_that_nobody_waits_for_any_more_is_stored_all_the_same(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await client.publish(channel, "cancelled")
            assert scope.cancelled_caught
        async with trisync.connect(tcp_url) as client:
            assert [message.data for message in (await client.history(channel)).messages] == ["cancelled"]

    run(main)


def test_a_question_that_nobody_waits_for_any_more_is_not_asked(run: Run) -> None:
    async def main() -> None:
        talk = Talk(online=False)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await receipts.ask(talk.machine, "history", {"channel": "lobby"})
        assert talk.come_online() == []

    run(main)


ENTERED = [
    lambda machine: Subscription[Message](machine, "lobby", Start(), raise_gaps=True),
    lambda machine: Document(machine, "lobby"),
    lambda machine: Roster(machine, "lobby"),
]


@pytest.mark.parametrize("make", ENTERED, ids=["messages", "state", "presence"])
def test_what_the_server_refuses_while_it_is_entered_is_not_waited_for(
    run: Run, make: Callable[[Machine], Entered]
) -> None:
    async def main() -> None:
        talk = Talk()
        entered = make(talk.machine)

        async def enter() -> None:
            with pytest.raises(Forbidden):
                await entered.__aenter__()

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(enter)
                await anyio.wait_all_tasks_blocked()
                (asked,) = talk.heard()
                talk.refuse(asked["id"], "forbidden", retry=False)

    run(main)


@pytest.mark.parametrize("make", ENTERED, ids=["messages", "state", "presence"])
def test_what_nobody_waits_to_enter_any_more_is_left(run: Run, make: Callable[[Machine], Entered]) -> None:
    async def main() -> None:
        talk = Talk()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await make(talk.machine).__aenter__()
        assert [request["op"] for request in talk.heard()] == ["subscribe", "unsubscribe"]

    run(main)


def test_what_was_left_and_a_client_that_was_closed_end_with_closed(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            await client.publish(channel, 1, key="k")
            async with client.subscribe(channel, since=0) as left, client.state(channel) as doc:
                assert (await anext(left)).data == 1
                changes = doc.changes()
                async with client.presence(channel) as members:
                    people = members.changes()
            for iterator in (left, changes, people):
                with pytest.raises(Closed, match=f"the program left {channel}"):
                    await anext(iterator)
            assert dict(doc) == {"k": 1}
            with pytest.raises(Closed, match="the program left"):
                doc["k"] = 2
            messages = await client.subscribe(channel).__aenter__()
            doc = await client.state(channel).__aenter__()
            members = await client.presence(channel).__aenter__()
            changes, people, statuses = doc.changes(), members.changes(), client.status_changes()
        for ended in (messages, changes, people, client.status_changes()):
            with pytest.raises(Closed, match="the client is closed: the program closed it"):
                await anext(ended)
        assert (await anext(statuses)).state is State.CLOSED
        with pytest.raises(Closed, match="the client is closed"):
            await anext(statuses)
        with pytest.raises(Closed, match="the client is closed"):
            await doc.set("k", 2)

    run(main)


def test_an_error_that_is_raised_again_does_not_grow(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            refused = client.post(channel, 1, key="k", expect=5)
            messages = await client.subscribe(channel).__aenter__()
            doc = await client.state(channel).__aenter__()
        changes, statuses = doc.changes(), client.status_changes()

        async def depth(ask: Callable[[], Any]) -> int:
            with pytest.raises((Closed, Conflict)) as caught:
                await ask()
            return len(caught.traceback)

        async def receipt() -> int:
            return await refused

        asked: list[Callable[[], Any]] = [lambda: client.publish(channel, 1), client.room, receipt]
        for ask in [*asked, lambda: doc.set("k", 1), *(each.__anext__ for each in (messages, changes, statuses))]:
            before = await depth(ask)
            for _ in range(3):
                assert await depth(ask) == before

    run(main)


def test_a_client_that_was_not_entered_says_so_instead_of_waiting_for_ever(run: Run, channel: str) -> None:
    async def main() -> None:
        client = trisync.connect(NOBODY)
        for ask in (
            lambda: client.publish(channel, 1),
            lambda: client.publish(channel, 1, ephemeral=True),
            lambda: client.history(channel),
            lambda: client.members(channel),
            lambda: client.words(channel),
            lambda: client.word(channel, "key"),
            client.room,
        ):
            with pytest.raises(RuntimeError, match="a client is entered first"):
                await ask()
        for make in (lambda: client.post(channel, 1), lambda: client.subscribe(channel), lambda: client.state(channel)):
            with pytest.raises(RuntimeError, match="a client is entered first"):
                make()
        with pytest.raises(RuntimeError, match="a client is entered first"):
            client.presence(channel)

    run(main)
