"""The page in a real browser as a person uses it, and somebody at netcat beside it."""

import re
import shutil
import socket

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.harness import PATIENCE_S

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SLOW_S = 3 * PATIENCE_S
"""What a browser on a busy machine may take."""

expect.set_options(timeout=1000 * SLOW_S)


def open_page(context: BrowserContext, port: int, name: str, path: str = "/", *, state: str = "online") -> Page:
    """A page under a name, in a state; whatever it says in its console as an error fails the test."""
    page = context.new_page()
    page.on("pageerror", lambda error: pytest.fail(f"{name}: {error}"))
    page.goto(f"http://127.0.0.1:{port}{path}")
    await_state(page, state)
    page.fill("#name", name)
    page.press("#name", "Enter")
    return page


def await_state(page: Page, *states: str) -> None:
    wanted = ",".join(f"#status[data-state={state}]" for state in states)
    expect(page.locator(wanted)).to_be_attached()


def network_is_back(page: Page) -> None:
    """What the browser tells a page when the machine has a network again."""
    page.evaluate("dispatchEvent(new Event('online'))")


def say(page: Page, text: str) -> None:
    page.fill("#composer", text)
    page.press("#composer", "Enter")


def texts(page: Page) -> list[str]:
    return page.locator("#log [data-offset] .text").all_inner_texts()


def offsets(page: Page) -> list[int]:
    rows: list[str] = page.locator("#log [data-offset]").evaluate_all("rows => rows.map(row => row.dataset.offset)")
    return [int(offset) for offset in rows]


def await_head(page: Page, offset: int) -> None:
    """Wait until the page is level, and nothing it sent is unanswered."""
    expect(page.locator("#head")).to_have_text(str(offset))
    expect(page.locator(f"#log [data-offset='{offset}']")).to_be_attached()
    expect(page.locator("#log .row.pending")).to_have_count(0)


class Netcat:
    """What somebody at netcat sees of the lobby."""

    def __init__(self, port: int, name: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._seen = ""
        self.type(f"/name {name}\n")
        self.await_sight(r"\* you are .*\n")

    def type(self, text: str) -> None:
        self._socket.sendall(text.encode())

    def await_sight(self, pattern: str) -> str:
        """Wait until something is seen, and return it; what was before it is forgotten."""
        while not (match := re.search(pattern, self._seen)):
            chunk = self._socket.recv(65536).decode()
            assert chunk, f"ended without {pattern!r}: {self._seen!r}"
            self._seen += chunk
        self._seen = self._seen[match.end() :]
        return match[0]

    def close(self) -> None:
        self._socket.close()
