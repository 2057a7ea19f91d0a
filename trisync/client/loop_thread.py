"""An event loop in a thread of its own, for calls from other threads."""

from concurrent.futures import Future
from threading import Thread

import anyio
from anyio.from_thread import BlockingPortal


class LoopThread:
    """A context manager for the portal to such a loop; entering raises why there cannot be one. Where nobody leaves it,
    it ends with the process; where an exception leaves it, as that of a Ctrl-C does, what still runs there is
    cancelled.

    anyio's start_blocking_portal() is a generator, which waits for the thread when it is collected: at the end of the
    interpreter, when there are no threads any more, or in a child that was forked and never had it.
    """

    def __enter__(self) -> BlockingPortal:
        self._thread = Thread(target=self._run, name="trisync client", daemon=True)
        self._started: Future[BlockingPortal] = Future()
        self._thread.start()
        self._portal = self._started.result()
        return self._portal

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._portal.call(self._portal.stop, kind is not None)
        self._thread.join()

    def _run(self) -> None:
        async def main() -> None:
            async with BlockingPortal() as portal:
                self._started.set_result(portal)
                await portal.sleep_until_stopped()

        try:
            anyio.run(main, backend="trio")
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)  # such as that there are no file descriptors left
