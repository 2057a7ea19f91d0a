"""The HTTP interface from a page of another origin, in a real browser: what CORS allows, how EventSource returns."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.browser.pages import CHROMIUM, FLAGS
from tests.harness import PATIENCE_S, server_process

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is missing: apt-get install chromium"
)


class BlankPage(http.server.BaseHTTPRequestHandler):
    """A page with nothing on it, of an origin of its own."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page at another origin than the server's."""
    with http.server.HTTPServer(("127.0.0.1", 0), BlankPage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                page = browser.new_page()
                page.set_default_timeout(1000 * PATIENCE_S)
                page.goto(f"http://127.0.0.1:{server.server_port}/")
                yield page
                browser.close()
        finally:
            server.shutdown()
            thread.join()


def origin_of(page: Page) -> str:
    return str(page.evaluate("location.origin"))


WRITE = """async url => {
    const response = await fetch(url, {method: "PUT", body: '"red"', headers:
        {"Content-Type": "application/json", "If-None-Match": "*", "Idempotency-Key": "k"}})
    return [response.status, response.headers.get("ETag")]
}"""
READ = "async url => (await fetch(url)).json()"
REFUSED = "async url => fetch(url).then(() => 'read', error => error.name)"


def test_a_page_whose_origin_is_allowed_writes_and_reads_with_conditions(page: Page, tmp_path: Path) -> None:
    with server_process(tmp_path, "--origins", origin_of(page)) as server:
        url = f"http://127.0.0.1:{server.web_port}/channels/lamp/state/colour"
        assert page.evaluate(WRITE, url) == [201, '"1"']
        assert page.evaluate(READ, url) == "red"


def test_a_page_whose_origin_is_not_allowed_can_do_neither(page: Page, tmp_path: Path) -> None:
    with server_process(tmp_path, "--origins", "http://elsewhere.example") as server:
        url = f"http://127.0.0.1:{server.web_port}/channels/lamp/state/colour"
        assert page.evaluate(f"url => ({WRITE})(url).catch(error => error.name)", url) == "TypeError"
        assert page.evaluate(REFUSED, f"http://127.0.0.1:{server.web_port}/channels") == "TypeError"


LISTEN = """url => {
    window.seen = []
    window.source = new EventSource(url)
    source.onmessage = event => seen.push([event.lastEventId, JSON.parse(event.data).data])
    return new Promise(done => source.addEventListener("ok", () => done(), {once: true}))
}"""
POST = """async ([url, data]) => (await fetch(url, {method: "POST", body: JSON.stringify(data), headers:
    {"Content-Type": "application/json"}})).status"""


def test_an_event_source_comes_back_by_itself_over_a_restart_and_misses_nothing(page: Page, tmp_path: Path) -> None:
    options = ("--origins", origin_of(page), "--reconnect-spread-ms", "50")
    with server_process(tmp_path, *options) as server:
        channel = f"http://127.0.0.1:{server.web_port}/channels/lobby"
        page.evaluate(LISTEN, f"{channel}/events")
        assert page.evaluate(POST, [f"{channel}/messages", "before"]) == 201
        page.wait_for_function("seen.length == 1")
        assert server.stop() == 0
        port = server.web_port
    with server_process(tmp_path, *options, web_port=port) as server:
        assert page.evaluate(POST, [f"{channel}/messages", "after"]) == 201
        page.wait_for_function("seen.length == 2")
        assert page.evaluate("seen") == [["1", "before"], ["2", "after"]]
        page.evaluate("source.close()")
