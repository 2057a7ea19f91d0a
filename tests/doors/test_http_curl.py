"""The HTTP interface by Debian's curl: what it sends that a client made by hand would not think of."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.harness import PATIENCE_S, Json, ServerProcess, server_process

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing: apt-get install curl")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("curl")) as server:
        yield server


@pytest.fixture
def url(request: pytest.FixtureRequest, server: ServerProcess) -> str:
    """The address of the messages of a channel that no other test uses."""
    return f"http://127.0.0.1:{server.web_port}/channels/{request.node.name}/messages"


def curl(url: str, *options: str, sent: bytes = b"") -> tuple[int, str]:
    """Run curl; the status of its answer, and the body."""
    command = ["curl", "-sS", "--max-time", str(PATIENCE_S), "-w", "\n%{http_code}", *options, url]
    said = subprocess.run(command, input=sent, capture_output=True, check=True, timeout=2 * PATIENCE_S).stdout.decode()
    body, _, status = said.rpartition("\n")
    return int(status), body


def history(url: str) -> list[Json]:
    """The messages of the channel."""
    status, body = curl(url)
    assert status == 200
    messages: list[Json] = json.loads(body)["messages"]
    return messages


def test_a_form_is_what_curl_sends_unasked_and_is_refused_with_a_word_on_what_to_send(url: str) -> None:
    status, body = curl(url, "-d", '{"a":1}')
    assert status == 415
    assert "application/json" in json.loads(body)["message"]
    assert history(url) == []


def test_a_body_from_a_pipe_comes_in_chunks(url: str) -> None:
    status, _ = curl(url, "-X", "POST", "-T", "-", sent=b'{"piped":true}\n')
    assert status == 201
    assert [message["data"] for message in history(url)] == [{"piped": True}]


def test_a_large_body_is_announced_and_sent_when_the_server_says_so(url: str) -> None:
    large = json.dumps("x" * 1_000_000).encode()
    headers = ("-H", "Content-Type: application/json", "-H", "Expect: 100-continue")
    status, _ = curl(url, "--data-binary", "@-", *headers, sent=large)
    assert status == 201
    assert [len(message["data"]) for message in history(url)] == [1_000_000]


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(url: str) -> None:
    headers = ("-H", "Content-Type: application/json", "-H", "Expect: 100-continue")
    sizes = ("-w", " sent %{size_upload}\n%{http_code}")
    status, body = curl(url, "--data-binary", "@-", *headers, *sizes, sent=b"1" * 20_000_000)
    error, _, sent = body.partition(" sent ")
    assert (status, json.loads(error)["code"], sent) == (413, "too_large", "0")


def test_a_connection_is_kept_for_the_next_call(url: str) -> None:
    options = ["--json", "1", "-o", "/dev/null", "-w", "%{num_connects}"]
    command = ["curl", "-sS", "--max-time", str(PATIENCE_S), *options, url, "--next", "-sS", *options, url]
    assert subprocess.run(command, capture_output=True, check=True, timeout=2 * PATIENCE_S).stdout == b"10"
