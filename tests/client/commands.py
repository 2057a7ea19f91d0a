"""Running the commands that talk to a server, and what answers them in the place of one."""

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.harness import PATIENCE_S
from trisync.cli import main


def trisync(url: str, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a client command to its end, in this process: to start one takes far longer than most commands do."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile("w+", encoding="utf-8") as stdin:
        stdin.write(text)
        stdin.seek(0)
        stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
            patch.setattr(sys, name, stream)
        patch.setenv("TRISYNC_URL", url)
        with pytest.raises(SystemExit) as ended:
            main(arguments, prog_name="trisync")
    assert isinstance(ended.value.code, int)
    said, complained = (stream.buffer.getvalue().decode() for stream in (stdout, stderr))
    return subprocess.CompletedProcess(arguments, ended.value.code, said, complained)


def without_space(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, in a process whose standard output has no space left."""
    command = [sys.executable, "-m", "trisync", *arguments]
    with open("/dev/full", "wb") as full:
        return subprocess.run(
            command, input=text, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False
        )


@contextmanager
def running(url: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A client command that goes on; ended at the end."""
    # What a shell starts in the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "trisync", *arguments],
        env={**os.environ, "TRISYNC_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """HOST:PORT of something that answers whatever comes with these bytes, once for each connection, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer_everybody() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

    thread = threading.Thread(target=answer_everybody)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # which, unlike close(), wakes the thread
        thread.join()
        listener.close()
