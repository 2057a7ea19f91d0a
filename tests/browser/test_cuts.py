"""The page against servers that are killed, networks that are cut, and tabs that are reloaded or crash."""

import itertools
import json
import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, expect

from tests.browser.cuts import Network, network
from tests.browser.pages import Netcat, await_head, await_state, network_is_back, offsets, open_page, say, texts
from tests.harness import PATIENCE_S, ServerProcess, server_process
from trisync.client import connect_sync

KILLS = 10


def history(server: ServerProcess, since: int = 0) -> dict[str, Any]:
    """The lobby's log as the server has it, a thousand messages of it."""
    request = {"op": "history", "id": 1, "channel": "lobby", "since": since, "limit": 1000}
    with socket.create_connection(("127.0.0.1", server.tcp_port), timeout=PATIENCE_S) as connection:
        lines = connection.makefile("rw")
        print(json.dumps(request), file=lines, flush=True)
        answer: dict[str, Any] = json.loads(lines.readline())
        return answer


def stored(server: ServerProcess) -> list[Any]:
    """What was said in the lobby, all of it."""
    data: list[Any] = []
    while True:
        page = history(server, len(data))
        data += [message["data"] for message in page["messages"]]
        if not page["more"]:
            return data


def cut_off(page: Page, network: Network) -> None:
    """Take a page's WebSocket away, and keep it from getting another."""
    network.has_websockets = False
    network.reset()
    await_state(page, "offline", "connecting")


def break_network(network: Network, fault: str) -> None:
    match fault:
        case "reset":
            network.reset()
        case "half-close":
            network.half_close()
        case "black hole":
            network.become_a_black_hole()


def test_two_pages_a_python_client_and_a_netcat_agree_while_the_server_is_killed_ten_times(
    browser: Browser, tmp_path: Path
) -> None:
    faults = ("none", "reset", "half-close", "black hole", "delay")
    pages: dict[str, Page] = {}
    with ExitStack() as programs, network() as net:
        for round in range(KILLS):
            with server_process(tmp_path) as server:
                net.server_port = server.web_port
                if not pages:
                    pages = {name: open_page(browser.new_context(), net.port, name) for name in ("ada", "bob")}
                    carol = programs.enter_context(connect_sync(f"ws://127.0.0.1:{net.port}", name="carol"))
                    messages = programs.enter_context(carol.subscribe("lobby", since=0))
                grace = Netcat(server.tcp_port, "grace")
                fault = faults[round % len(faults)]
                if fault == "delay":
                    net.delay_s = 0.1
                for name, page in pages.items():
                    network_is_back(page)
                    say(page, f"{name} {round} before")
                carol.nudge()
                carol.post("lobby", f"carol {round} before")
                grace.type(f"grace {round}\n")
                grace.await_sight(f"grace: grace {round}\n")
                break_network(net, fault)
                for name, page in pages.items():
                    say(page, f"{name} {round} during")
                carol.post("lobby", f"carol {round} during")
                grace.close()
                server.stop(signal.SIGKILL)
            net.heal()
            net.reset()
            for name, page in pages.items():
                say(page, f"{name} {round} after")
            carol.post("lobby", f"carol {round} after")
        with server_process(tmp_path) as server:
            net.server_port = server.web_port
            for page in pages.values():
                network_is_back(page)
            carol.nudge()
            count = 10 * KILLS
            for page in pages.values():
                await_head(page, count)
            seen = list(itertools.islice(messages, count))
            log = stored(server)
            assert len(log) == count
            for name in (*pages, "carol"):
                expected = [
                    f"{name} {round} {when}" for round in range(KILLS) for when in ("before", "during", "after")
                ]
                assert [text for text in log if text.startswith(name)] == expected
            assert [text for text in log if text.startswith("grace")] == [f"grace {round}" for round in range(KILLS)]
            assert [(message.offset, message.data) for message in seen] == [*enumerate(log, start=1)]
            for page in pages.values():
                assert texts(page) == log
                assert offsets(page) == [*range(1, count + 1)]
                assert page.locator("#log .notice").count() == 0
                page.context.close()


def test_a_connection_that_died_without_a_word_is_noticed(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        context.clock.install()
        page = open_page(context, net.port, "ada")
        net.become_a_black_hole()
        say(page, "into the void")
        expect(page.locator("#log .row.pending")).to_have_count(1)
        await_state(page, "online")
        net.heal()
        context.clock.run_for(40_000)
        await_head(page, 1)
        assert stored(server) == ["into the void"]
        context.close()


FILL = """async ({url, count}) => {
    const { connect } = await import("/trisync.js");
    const client = connect(url);
    const codes = [];
    for (let number = 1; number <= count; number++) {
        client.publish("lobby", `number ${number}`).catch(({ code }) => codes.push(code));
    }
    await new Promise((stored) => setTimeout(stored, 0));
    while (client.queue.length < count - 1) await new Promise((next) => setTimeout(next, 10));
    const result = (request) => new Promise((done) => (request.onsuccess = () => done(request.result)));
    const database = await result(indexedDB.open(`trisync ${client.url}`));
    for (let kept = 0; kept < count - 1; ) {
        const keys = await result(database.transaction("queue").objectStore("queue").getAllKeys());
        kept = keys.filter(([producer, seq]) => seq > 0).length;
    }
    database.close();
    return codes;
}"""


def test_a_tab_that_is_reloaded_with_a_full_queue_loses_nothing(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        page = open_page(browser.new_context(), net.port, "ada")
        cut_off(page, net)
        codes = page.evaluate(FILL, {"url": f"ws://127.0.0.1:{net.port}/", "count": 1001})
        assert codes == ["limit"], "one more than fit is refused, and nothing dropped for it"
        say(page, "and from the page")
        for _ in range(2):
            expect(page.locator("#banner")).to_contain_text("also if you close this page")
            page.reload()
            await_state(page, "offline", "connecting")
            expect(page.locator("#log .row.pending")).to_have_count(1001)
        expect(page.locator("#banner")).to_contain_text("1,001 changes wait")
        page.fill("#add-text", "one too many")
        page.press("#add-text", "Enter")
        expect(page.locator("#board-note")).to_contain_text("Not saved")
        expect(page.locator("#add-text")).to_have_value("one too many")
        net.heal()
        network_is_back(page)
        await_head(page, 1001)
        log = stored(server)
        assert [text for text in log if text.startswith("number")] == [f"number {number}" for number in range(1, 1001)]
        assert log.count("and from the page") == 1
        assert len(log) == 1001
        page.context.close()


def test_on_a_small_screen_the_document_too_says_that_the_page_is_offline(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        page = open_page(browser.new_context(viewport={"width": 320, "height": 568}), net.port, "ada")
        page.locator("#show-board").click()
        cut_off(page, net)
        page.fill("#add-text", "tea")
        page.press("#add-text", "Enter")
        expect(page.locator("#banner")).to_be_in_viewport(ratio=1)
        expect(page.locator("#banner")).to_contain_text("1 change waits to be sent")
        expect(page.locator("#add-text")).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.scrollingElement.scrollHeight") == 568
        page.context.close()


WATCH = """() => {
    window.aloud = [];
    window.tries = 0;
    const [banner, state, status] = ["banner", "state", "status"].map((id) => document.getElementById(id));
    for (const part of [banner, state]) {
        const say = () => part.ariaLive !== "off" && aloud.push(part.textContent);
        new MutationObserver(say).observe(part, { childList: true });
    }
    new MutationObserver((changes) => (tries += changes.length)).observe(status, { attributeFilter: ["data-state"] });
}"""


def test_a_page_that_tries_again_and_again_says_once_that_it_is_offline(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        page = open_page(context, net.port, "ada")
        expect(page.locator("#people-title")).to_have_text("1 here")
        page.evaluate(WATCH)
        cut_off(page, net)
        while page.evaluate("tries") < 6:
            network_is_back(page)
        expect(page.locator("#members")).to_have_css("opacity", "1")  # who was there can still be read
        expect(page.locator("#members .name")).to_have_css("color", "rgb(95, 103, 112)")
        assert page.evaluate("aloud") == ["Offline: no connection to the server. You can go on writing."]
        page.evaluate("location.hash = 'another'")
        expect(page.locator("#help-join")).to_have_text("/join another")
        expect(page.locator("#board-empty")).to_be_hidden()
        expect(page.locator("#people")).not_to_be_visible()
        net.heal()
        network_is_back(page)
        expect(page.locator("#board-empty")).to_be_visible()
        expect(page.locator("#people-title")).to_have_text("1 here")
        assert sorted(page.evaluate("aloud.slice(1)")) == ["", "Online"]
        context.close()


def test_who_tries_to_reconnect_by_keyboard_goes_on_with_the_same_key(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context(viewport={"width": 320, "height": 568})
        page = open_page(context, net.port, "ada")
        page.evaluate(WATCH)
        cut_off(page, net)
        page.focus("#reconnect")
        while page.evaluate("tries") < 6:
            page.keyboard.press("Enter")
        expect(page.locator("#reconnect")).to_be_focused()
        expect(page.locator("#server")).to_be_hidden()  # there is no room for both
        net.heal()
        page.keyboard.press("Enter")
        await_state(page, "online")
        expect(page.locator("#reconnect")).to_be_hidden()
        expect(page.locator("#log")).to_be_focused()
        context.close()


def test_what_was_said_before_is_not_to_be_read_aloud_and_the_first_that_is_said_is(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        page = open_page(context, net.port, "ada")
        log = page.get_by_role("log")
        expect(log).to_have_attribute("aria-busy", "false")
        cut_off(page, net)
        page.evaluate("location.hash = 'another'")
        expect(log).to_have_attribute("aria-busy", "true")
        net.heal()
        network_is_back(page)
        expect(log).to_have_attribute("aria-busy", "false")
        context.close()


def test_a_clock_that_is_set_back_does_not_make_the_next_try_look_an_hour_away(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        context.clock.install()
        page = open_page(context, net.port, "ada")
        page.evaluate("Math.random = () => 0.99")
        cut_off(page, net)
        while page.locator("#countdown").inner_text() in ("", "in 1 s", "in 2 s"):
            network_is_back(page)
        now_s = page.evaluate("Date.now()") / 1000
        context.clock.pause_at(now_s + 1)
        context.clock.set_system_time(now_s - 3600)
        context.clock.run_for(250)
        assert len(page.locator("#countdown").inner_text()) <= len("in 20 s")
        context.close()


@pytest.mark.parametrize(
    "what", ["indexedDB.open = ", "IDBObjectStore.prototype.put = ", "LockManager.prototype.request = async "]
)
def test_where_nothing_can_be_kept_the_page_says_so(browser: Browser, tmp_path: Path, what: str) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        context.add_init_script(f"{what}() => {{ throw new DOMException('no', 'QuotaExceededError'); }};")
        page = open_page(context, net.port, "ada")
        cut_off(page, net)
        say(page, "not to be lost")
        expect(page.locator("#banner")).to_contain_text("1 change waits to be sent; lost if you close this page.")
        net.heal()
        network_is_back(page)
        await_head(page, 1)
        context.close()


LOCKS_ARE_LATE = """
    const { request } = LockManager.prototype;
    LockManager.prototype.request = async function (...asked) {
        await new Promise((resolve) => (globalThis.lock = resolve));
        return request.apply(this, asked);
    };
"""


def test_where_storage_is_late_the_page_goes_on_without_it_and_says_so(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        context.clock.install()
        context.add_init_script(LOCKS_ARE_LATE)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{net.port}/")
        context.clock.fast_forward(10_000)
        await_state(page, "online")
        page.evaluate("lock()")
        cut_off(page, net)
        say(page, "not to be lost")
        expect(page.locator("#banner")).to_contain_text("1 change waits to be sent; lost if you close this page.")
        net.heal()
        network_is_back(page)
        await_head(page, 1)
        context.close()


def test_what_is_written_after_a_reload_is_not_taken_for_what_was_written_before(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        page = open_page(browser.new_context(), net.port, "ada")
        say(page, "one")
        await_head(page, 1)
        cut_off(page, net)
        page.reload()
        await_state(page, "offline", "connecting")
        say(page, "two")
        say(page, "three")
        net.heal()
        network_is_back(page)
        await_head(page, 3)
        assert stored(server) == ["one", "two", "three"]
        page.context.close()


def test_the_queue_of_a_tab_that_crashed_is_sent_by_the_next_one_that_opens(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        crashing, living = open_page(context, net.port, "ada"), open_page(context, net.port, "bob")
        cut_off(crashing, net)
        await_state(living, "offline", "connecting")
        for number in range(5):
            say(crashing, f"ada {number}")
            say(living, f"bob {number}")
        expect(crashing.locator("#log .row.pending")).to_have_count(5)
        crash(crashing)
        third = open_page(context, net.port, "eve", state="offline")
        expect(third.locator("#log .row.pending .text")).to_have_text([f"ada {number}" for number in range(5)])
        say(third, "eve")
        net.heal()
        for page in (living, third):
            network_is_back(page)
        for page in (living, third):
            await_head(page, 11)
        log = stored(server)
        assert [text for text in log if text.startswith("ada")] == [f"ada {number}" for number in range(5)]
        assert [text for text in log if text.startswith("bob")] == [f"bob {number}" for number in range(5)]
        assert len(log) == 11
        context.close()


def crash(page: Page) -> None:
    """End the process behind a tab, at once."""
    with page.expect_event("crash"), pytest.raises(Error):
        page.goto("chrome://crash")


DELETE_DATABASE = """name => new Promise((resolve) => {
    const request = indexedDB.deleteDatabase(name);
    request.onsuccess = () => resolve("deleted");
    request.onblocked = () => resolve("blocked");
})"""


def test_an_open_page_does_not_keep_its_queue_from_being_deleted(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = open_page(browser.new_context(), server.web_port, "ada")
        assert page.evaluate(DELETE_DATABASE, f"trisync ws://127.0.0.1:{server.web_port}/") == "deleted"
        say(page, "goes on without it")
        await_head(page, 1)
        page.context.close()


def test_two_tabs_are_two_producers_and_one_that_is_reloaded_is_not_there_twice(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path, "--presence-grace-s", "3600") as server, network(server.web_port) as net:
        context = browser.new_context()
        tabs = [open_page(context, net.port, name) for name in ("ada", "bob")]
        for tab in tabs:
            expect(tab.locator("#members .person")).to_have_count(2)
        for number in range(10):
            for tab in tabs:
                say(tab, f"message {number}")
        for tab in tabs:
            await_head(tab, 20)
        tabs[0].reload()
        await_head(tabs[0], 20)
        for tab in tabs:
            expect(tab.locator("#members .person")).to_have_count(2)
            assert sorted(texts(tab)) == sorted(stored(server))
        assert len(stored(server)) == 20
        context.close()


def test_who_has_two_names_in_two_tabs_keeps_both_over_a_reload(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        ada, bob = (open_page(context, net.port, name) for name in ("ada", "bob"))
        cut_off(ada, net)
        say(ada, "written by ada")
        ada.reload()
        net.heal()
        network_is_back(ada)
        await_head(ada, 1)
        expect(ada.locator("#name")).to_have_value("ada")
        expect(bob.locator("#name")).to_have_value("bob")
        assert [message["from"] for message in history(server)["messages"]] == ["ada"]
        ada.fill("#name", "")
        ada.press("#name", "Enter")
        expect(ada.locator("#name")).to_have_value("ada")
        context.close()


def test_what_a_guest_wrote_is_theirs_when_another_page_sends_it(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{net.port}/")
        await_state(page, "online")
        guest = page.input_value("#name")
        cut_off(page, net)
        say(page, "good night")
        expect(page.locator("#banner")).to_contain_text("kept on this device")
        page.close()
        net.heal()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{net.port}/")
        await_head(page, 1)
        assert [message["from"] for message in history(server)["messages"]] == [guest]
        context.close()


def test_a_guest_in_one_tab_does_not_replace_the_name_that_was_chosen_in_another(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        context = browser.new_context()
        guest = context.new_page()
        guest.goto(f"http://127.0.0.1:{net.port}/")
        await_state(guest, "online")
        open_page(context, net.port, "ada")
        cut_off(guest, net)
        say(guest, "good night")
        expect(guest.locator("#banner")).to_contain_text("kept on this device")
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{net.port}/")
        expect(page.locator("#name")).to_have_value("ada")
        context.close()


def sleep_through(browser: Browser, server: ServerProcess, net: Network, *, head: int, trimmed: int) -> Page:
    """A page that is back from a sleep behind its first message, in which the others up to `head` came, and the first
    so many went."""
    page = open_page(browser.new_context(), net.port, "ada")
    say(page, "good night")
    await_head(page, 1)
    cut_off(page, net)
    grace = Netcat(server.tcp_port, "grace")
    grace.type("".join(f"message {number}\n" for number in range(2, head + 1)))
    grace.await_sight(f"#lobby {head} grace: message {head}\n")
    grace.close()
    while history(server)["trimmed"] < trimmed:
        pass
    net.heal()
    network_is_back(page)
    await_head(page, head)
    return page


def test_a_page_that_slept_longer_than_the_retention_says_what_is_gone(browser: Browser, tmp_path: Path) -> None:
    options = ("--retention", "lobby messages=5", "--retention-tick-s", "0.02")
    with server_process(tmp_path, *options) as server, network(server.web_port) as net:
        page = sleep_through(browser, server, net, head=21, trimmed=16)
        assert offsets(page) == [1, *range(17, 22)]
        notice = page.locator("#log .notice[data-kind=trimmed]")
        expect(notice).to_have_text(re.compile("Messages 2–16 are no longer kept"))
        assert page.evaluate("document.querySelector('[data-kind=trimmed]').nextElementSibling.dataset.offset") == "17"
        page.context.close()


def test_a_page_that_slept_long_says_what_is_gone_above_all_that_it_shows(browser: Browser, tmp_path: Path) -> None:
    options = ("--retention", "lobby messages=600", "--retention-tick-s", "0.02")
    with server_process(tmp_path, *options) as server, network(server.web_port) as net:
        page = sleep_through(browser, server, net, head=800, trimmed=200)
        expect(page.locator("#log .row")).to_have_count(500)
        expect(page.locator("#beginning")).to_have_text("Messages 2–200 are no longer kept.")
        while page.locator("#earlier").is_visible():
            page.locator("#earlier").click()
            expect(page.locator("#earlier")).to_be_enabled()
        assert offsets(page) == [*range(201, 801)]
        page.context.close()
