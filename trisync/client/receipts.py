"""What a program holds of a publish, or of another request, that is under way."""

import logging
from collections.abc import Callable, Generator
from typing import Any

from trisync.client.driver import Signal
from trisync.client.errors import ClientError
from trisync.client.machine import Machine
from trisync.client.publishes import Publish
from trisync.client.requests import Request
from trisync.client.wire import Ok

logger = logging.getLogger("trisync.client")


class Receipt:
    """A publish on its way. Await it for its offset, as often as you like; cancelling that takes nothing back.

    Raises what the server refuses it with, and Closed if the client was closed before there was an answer. A refusal
    that nobody awaited is logged as an error, so that nothing is lost silently; what has no answer, the client tells of
    in one line when it is closed.
    """

    __slots__ = ("_publish",)

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        publish.on_settled.append(self._stay)

    def _stay(self) -> None:
        """Is kept by its publish until that is settled, so that it can tell of a refusal when nobody else has it."""

    def __repr__(self) -> str:
        publish = self._publish
        said = f"stored at offset {publish.offset}" if publish.settled else "on its way"
        return f"<Receipt: {said if publish.error is None else publish.error}>"

    @property
    def done(self) -> bool:
        """Whether the server has answered, or the client was closed before."""
        return self._publish.settled

    @property
    def failed(self) -> bool:
        """Whether it was not stored. Who has looked here has not been told why."""
        return self._publish.error is not None

    @property
    def error(self) -> ClientError | None:
        """Why it was not stored, if that is so. Who has looked here has been told."""
        self._publish.told = self._publish.settled
        return self._publish.error

    async def wait(self) -> None:
        """Wait until it is done, whatever comes of it."""
        await until_settled(self._publish)

    def __await__(self) -> Generator[Any, Any, int]:
        return self._result().__await__()

    async def _result(self) -> int:
        await self.wait()
        return self.result()

    def result(self) -> int:
        """The offset, for who knows that it is done. Raises as awaiting it does, and RuntimeError where it is not."""
        if not self._publish.settled:
            raise RuntimeError("there is no answer yet: await the receipt")
        if self.error is not None:
            raise self.error.with_traceback(None)
        return self._publish.offset

    def __del__(self) -> None:
        if not self._publish.told and self._publish.error is not None and not self._publish.unanswered:
            logger.error("a publish failed, and nobody awaited its receipt: %s", self._publish.error)


async def until_settled(publish: Publish) -> None:
    """Wait for the verdict on a publish. Whoever has its receipt is still to be told of it."""
    signal = Signal()
    publish.on_settled.append(signal.fire)
    try:
        while not publish.settled:
            await signal.wait()
    finally:
        if not publish.settled:
            publish.on_settled.remove(signal.fire)


async def ask(machine: Machine, op: str, fields: dict[str, Any]) -> Ok:
    """Ask, on as many connections as it takes. Raises Refused and Closed; cancelled, it is not asked again."""
    return await answer_to(machine, lambda on_done: machine.request(op, fields, on_done))


async def answer_to(machine: Machine, send: Callable[[Callable[[Request], None]], Request]) -> Ok:
    """Send a request, with what is called when it is done, and wait for its answer. Raises what it failed with."""
    signal = Signal()
    request = send(lambda _: signal.fire())
    try:
        while request.reply is None and request.error is None:
            await signal.wait()
    except BaseException:
        machine.forget(request)
        raise
    if request.error is not None:
        raise request.error.with_traceback(None)
    assert type(request.reply) is Ok
    return request.reply
