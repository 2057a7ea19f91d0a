"""The blocking client in a process that ends, forks, or is interrupted while one is open."""

import subprocess
import sys

import pytest

import trisync
from tests.client.conftest import NOBODY
from tests.harness import PATIENCE_S

OPEN = """
import os, sys, trisync
client = trisync.connect_sync(sys.argv[1]).open()
receipt = client.post(sys.argv[2], 1)
"""


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *arguments]  # of forks, in 3.12
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize(("end", "status"), [("", 0), ("1 / 0", 1), ("sys.exit(3)", 3)])
def test_a_client_that_nobody_closed_is_closed_with_its_process(
    tcp_url: str, channel: str, end: str, status: int
) -> None:
    ran = run_program(OPEN + end, tcp_url, channel)
    assert ran.returncode == status, ran.stderr
    assert ("ZeroDivisionError" in ran.stderr) == (status == 1)
    with trisync.connect_sync(tcp_url) as client:
        assert [message.data for message in client.history(channel).messages] == [1]


WITHOUT_DESCRIPTORS = """
import resource, sys
from trisync.client import NotConnected, connect_sync
client = connect_sync(sys.argv[1], wait_s=0)
try:
    client.open()
except NotConnected:
    pass  # and all that it needs is imported by now
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    client.open()
except OSError as error:
    print(error.strerror)
"""


def test_a_process_without_file_descriptors_is_told_so_instead_of_waiting_for_ever() -> None:
    assert run_program(WITHOUT_DESCRIPTORS, NOBODY).stdout == "Too many open files\n"


INTERRUPTED = """
import signal, sys, trio, trisync
from trisync.client import connect_sync
signal.signal(signal.SIGALRM, signal.default_int_handler)
client = connect_sync(sys.argv[1], wait_s=None if sys.argv[2] == "close" else 1e6, close_s=1e6)
if sys.argv[2] == "close":
    client.open().post("lobby", 1)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    getattr(client, sys.argv[2])()
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("waiting", ["open", "close"])
def test_ctrl_c_ends_the_wait_for_a_first_connection_and_for_the_last_answers(waiting: str) -> None:
    assert run_program(INTERRUPTED, NOBODY, waiting).stdout == "interrupted\n"


INTERRUPTED_BESIDE_OTHERS = """
import signal, sys, threading
from trisync.client import Closed, connect_sync
signal.signal(signal.SIGALRM, signal.default_int_handler)
client = connect_sync(sys.argv[1], wait_s=None, close_s=1e6).open()
client.post("lobby", 1)

def ask():
    try:
        client.history("lobby")
    except Closed:
        print("closed")

async def is_asked(inner):
    return bool(inner._machine._requests.of_kind("history"))

thread = threading.Thread(target=ask)
thread.start()
while not client._call(is_asked):
    pass
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    client.close()
except KeyboardInterrupt:
    print("interrupted")
thread.join()
"""


def test_who_waits_in_another_thread_meanwhile_is_told_that_the_client_was_closed() -> None:
    ran = run_program(INTERRUPTED_BESIDE_OTHERS, NOBODY)
    assert sorted(ran.stdout.split()) == ["closed", "interrupted"], ran.stderr


FORK = """
receipt.result()
if os.fork() == 0:
    for ask in (lambda: client.publish(sys.argv[2], 2), lambda: client.status, lambda: client.history(sys.argv[2])):
        try:
            ask()
        except RuntimeError as error:
            print(error)
    client.close()
    with client:
        print(client.publish(sys.argv[2], "from the child"))
    sys.exit(0)
print("the child ended with", os.waitstatus_to_exitcode(os.wait()[1]))
print(client.publish(sys.argv[2], "from the parent"))
"""


def test_a_client_is_its_own_processs_and_a_fork_opens_another(tcp_url: str, channel: str) -> None:
    ran = run_program(OPEN + FORK, tcp_url, channel)
    refused = "the client was opened before a fork: open one in each process\n"
    assert (ran.stdout, ran.stderr) == (refused * 3 + "2\nthe child ended with 0\n3\n", "")
