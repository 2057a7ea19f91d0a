"""The web page in a real browser, beside a netcat, over restarts of the server."""

import re
import socket
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.pages import Netcat, await_head, await_state, offsets, open_page, say, texts
from tests.harness import PATIENCE_S, ServerProcess, server_process


def a_page(browser: Browser, server: ServerProcess, name: str, path: str = "/") -> Page:
    """A page in a profile of its own."""
    return open_page(browser.new_context(viewport={"width": 900, "height": 700}), server.web_port, name, path)


def talkative(server: ServerProcess, count: int) -> Netcat:
    """Grace at a terminal, who has said so much."""
    grace = Netcat(server.tcp_port, "grace")
    grace.type("".join(f"message {number}\n" for number in range(1, count + 1)))
    grace.await_sight(f"#lobby {count} grace: message {count}\n")
    return grace


def test_two_pages_and_a_netcat_agree_over_restarts_of_the_server(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        ports = {"tcp_port": server.tcp_port, "web_port": server.web_port}
        ada, bob = a_page(browser, server, "ada"), a_page(browser, server, "bob")
        grace = Netcat(server.tcp_port, "grace")
        say(ada, "hello from a browser")
        grace.await_sight("#lobby 1 ada: hello from a browser\n")
        grace.type("hello from netcat\n")
        for page in (ada, bob):
            await_head(page, 2)
            assert texts(page) == ["hello from a browser", "hello from netcat"]
        grace.close()
        assert server.stop() == 0
    for page in (ada, bob):
        await_state(page, "connecting", "offline")
    say(ada, "written while the server was away")
    say(ada, "and one more")

    for round in range(2):
        with server_process(tmp_path, **ports) as server:
            grace = Netcat(server.tcp_port, "grace")
            before = 2 + 3 * round
            if round == 0:
                grace.await_sight(f"#lobby {before + 2} ada: and one more\n")
            else:
                say(ada, "written while the server was away")
                say(ada, "and one more")
                grace.await_sight(f"#lobby {before + 2} ada: and one more\n")
            grace.type("welcome back\n")
            for page in (ada, bob):
                await_head(page, before + 3)
            grace.close()
    expected = [
        "hello from a browser",
        "hello from netcat",
        *["written while the server was away", "and one more", "welcome back"] * 2,
    ]
    for page in (ada, bob):
        assert texts(page) == expected
        assert offsets(page) == list(range(1, 9))
        page.context.close()


def test_a_page_that_was_away_gets_what_it_missed_once(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = a_page(browser, server, "ada")
        page.context.set_offline(True)
        ports = {"tcp_port": server.tcp_port, "web_port": server.web_port}
        server.stop()
    with server_process(tmp_path, **ports) as server:
        grace = talkative(server, 200)
        page.context.set_offline(False)
        await_head(page, 200)
        assert offsets(page) == list(range(1, 201))
        grace.close()
        page.context.close()


def test_a_long_log_is_cut_except_for_who_reads_what_is_old(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = a_page(browser, server, "ada")
        grace = talkative(server, 600)
        await_head(page, 600)
        assert offsets(page) == list(range(101, 601))
        page.locator("#log").focus()
        page.keyboard.press("Home")
        expect(page.locator("#log [data-offset='101']")).to_be_in_viewport()
        grace.type("more\n" * 100)
        await_head(page, 700)
        expect(page.locator("#newer")).to_have_text("100 new messages")
        expect(page.locator("#log [data-offset='101']")).to_be_in_viewport()
        page.locator("#newer").click()
        grace.type("and more\n")
        await_head(page, 701)
        assert offsets(page) == list(range(202, 702))
        grace.close()
        page.context.close()


def test_who_writes_many_lines_still_sees_what_arrives(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        grace = talkative(server, 40)
        page = a_page(browser, server, "ada")
        await_head(page, 40)
        page.fill("#composer", "a line\n" * 5)
        page.locator("#composer").press_sequentially("and more")
        expect(page.locator("#log [data-offset='40']")).to_be_in_viewport(ratio=1)
        grace.type("news\n")
        await_head(page, 41)
        expect(page.locator("#log [data-offset='41']")).to_be_in_viewport(ratio=1)
        grace.close()
        page.context.close()


def test_who_comes_back_to_the_page_sees_all_lines_that_they_had_written(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = a_page(browser, server, "ada")
        text = "one\ntwo\nthree"
        page.fill("#composer", text)
        height = page.locator("#composer").evaluate("composer => composer.clientHeight")
        page.goto("about:blank")
        page.go_back()
        expect(page.locator("#composer")).to_have_value(text)
        page.wait_for_function("height => composer.clientHeight === height", arg=height)
        page.context.close()


def test_what_is_too_large_is_not_sent_and_stays_where_it_was_written(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path, "--message-bytes-max", "2000") as server:
        page = a_page(browser, server, "ada")
        say(page, "x" * 2000)
        expect(page.locator("#note")).to_have_text("Not sent: The server takes 2000 bytes.")
        expect(page.locator("#composer")).to_have_value("x" * 2000)
        page.context.close()


A_POLITE_SERVER = """
import trisync

server = trisync.Server()

@server.on_publish
async def be_polite(publish):
    if publish.data == "get out":
        raise trisync.Refuse("be polite")
"""


def test_what_is_refused_says_why_aloud_too_and_can_be_changed(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "polite.py").write_text(A_POLITE_SERVER)
    monkeypatch.chdir(tmp_path)
    with server_process(tmp_path / "data", "--app", "polite:server") as server:
        page = a_page(browser, server, "ada")
        say(page, "get out")
        refusal = page.get_by_role("alert").filter(has_text="Not sent: be polite")
        refusal.get_by_role("button", name="Edit").click()
        expect(page.locator("#composer")).to_have_value("get out")
        expect(page.locator("#composer")).to_be_focused()
        expect(page.locator("#log .row")).to_have_count(0)
        page.context.close()


def test_who_reads_back_by_keyboard_goes_on_with_the_same_key(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        grace = talkative(server, 120)
        page = a_page(browser, server, "ada")
        await_head(page, 120)
        page.locator("#earlier").focus()
        for first in (21, 1):
            page.keyboard.press("Enter")
            expect(page.locator(f"#log [data-offset='{first}']")).to_be_attached()
            expect(page.locator("#earlier")).to_be_enabled()
        expect(page.locator("#log")).to_be_focused()  # there is nothing earlier, and the button is gone
        page.keyboard.press("Home")
        expect(page.locator("#log [data-offset='1']")).to_be_in_viewport()
        grace.type(f"{'long' * 1001}\n")
        for key in (page.locator("#newer"), page.get_by_role("button", name="Show all")):
            expect(key).to_be_visible()
            key.press("Enter")
            expect(key).to_be_hidden()
            expect(page.locator("#log")).to_be_focused()
        grace.close()
        page.context.close()


@pytest.mark.parametrize("is_phone", [False, True], ids=["desktop", "phone"])
def test_who_opens_the_page_can_write_at_once_and_on_a_phone_reads_first(
    browser: Browser, tmp_path: Path, is_phone: bool
) -> None:
    with server_process(tmp_path) as server:
        context = browser.new_context(is_mobile=is_phone, has_touch=is_phone)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.web_port}/")
        await_state(page, "online")
        page.keyboard.type("hello")
        expect(page.locator("#composer")).to_have_value("" if is_phone else "hello")
        context.close()


def test_who_has_only_a_keyboard_need_not_go_through_the_links_to_write(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = open_page(browser.new_context(viewport={"width": 400, "height": 700}), server.web_port, "ada")
        page.focus("#channel")
        page.keyboard.press("Shift+Tab")
        skip = page.get_by_role("button", name="Write a message")
        expect(skip).to_be_focused()
        expect(skip).to_be_in_viewport(ratio=1)
        page.click("#show-board")
        skip.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#composer")).to_be_focused()
        page.context.close()


@pytest.mark.parametrize("view", ["chat", "board"])
def test_who_goes_to_the_composer_by_keyboard_does_not_lose_what_they_read(
    browser: Browser, tmp_path: Path, view: str
) -> None:
    with server_process(tmp_path) as server:
        grace = talkative(server, 80)
        page = a_page(browser, server, "ada")
        await_head(page, 80)
        page.click(f"#show-{view}")
        page.set_viewport_size({"width": 1300, "height": 700})  # where both are shown
        page.locator("#log [data-offset='31']").scroll_into_view_if_needed()
        page.locator("#skip").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#composer")).to_be_focused()
        expect(page.locator("#log [data-offset='31']")).to_be_in_viewport(ratio=1)
        grace.close()
        page.context.close()


def test_history_other_channels_and_data_that_is_no_text_are_shown(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        grace = talkative(server, 80)
        page = a_page(browser, server, "ada")
        await_head(page, 80)
        assert offsets(page) == list(range(31, 81))
        page.locator("#earlier").click()
        expect(page.locator("#log [data-offset='1']")).to_be_attached()
        assert offsets(page) == list(range(1, 81))
        page.fill("#channel", "doc:42")
        page.press("#channel", "Enter")
        expect(page).to_have_url(re.compile("#doc:42$"))
        grace.type('/join doc:42\n/json\n{"op":"publish","channel":"doc:42","data":{"b":[1,"<img src=x>"]}}\n')
        await_head(page, 1)
        assert '"<img src=x>"' in texts(page)[0]
        assert page.locator("#log img").count() == 0
        grace.close()
        page.context.close()


def test_a_channel_that_was_emptied_says_so_and_which_messages_are_gone(browser: Browser, tmp_path: Path) -> None:
    def delete(channel: str) -> None:
        address = f"http://127.0.0.1:{server.web_port}/channels/{channel}"
        with urlopen(Request(address, method="DELETE"), timeout=PATIENCE_S):
            pass

    with server_process(tmp_path) as server:
        page = a_page(browser, server, "ada")
        beginning, notice = page.locator("#beginning"), page.locator("#log .notice")
        for offset in range(1, 4):
            say(page, f"message {offset}")
            await_head(page, offset)
        delete("lobby")
        expect(notice).to_have_text("Messages 1–3 are no longer kept")
        expect(beginning).to_have_text("#lobby is empty: what was said here is no longer kept.")
        assert offsets(page) == []
        page.reload()
        expect(beginning).to_have_text("#lobby is empty: what was said here is no longer kept.")
        expect(page.locator("#earlier")).to_be_hidden()
        say(page, "again")
        await_head(page, 4)
        expect(beginning).to_have_text("What was before is no longer kept.")
        delete("lobby")
        expect(notice).to_have_text("Message 4 is no longer kept")
        assert offsets(page) == []
        page.fill("#channel", "another")
        page.press("#channel", "Enter")
        expect(beginning).to_have_text("Nothing has been said in #another yet.")
        page.context.close()


def test_the_first_day_stands_below_the_beginning(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        grace = Netcat(server.tcp_port, "grace")
        grace.type("/set title Picnic\n")
        grace.await_sight("grace: title = Picnic\n")
        page = a_page(browser, server, "ada")
        await_head(page, 1)
        day = "el => parseFloat(getComputedStyle(el, '::before').top)"
        beginning = page.locator("#beginning").bounding_box()
        row = page.locator("#log .row.edit")
        box = row.bounding_box()
        assert beginning
        assert box
        assert box["y"] + row.evaluate(day) >= beginning["y"] + beginning["height"]
        grace.close()
        page.context.close()


def test_the_last_message_above_an_edit_of_the_same_person_is_round_at_its_end(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path) as server:
        page = open_page(browser.new_context(viewport={"width": 1200, "height": 800}), server.web_port, "ada")
        for offset, text in enumerate(("one", "two"), start=1):
            say(page, text)
            await_head(page, offset)
        page.fill("#add-text", "tea")
        page.press("#add-text", "Enter")
        await_head(page, 3)
        radius = "row => getComputedStyle(row).borderBottomLeftRadius"
        one, two = (page.locator(f"#log [data-offset='{offset}']") for offset in (1, 2))
        assert (one.evaluate(radius), two.evaluate(radius)) == ("0px", "10px")
        page.context.close()


IS_LEFT_TO_THE_INPUT_METHOD = """(field, how) => {
    field.focus();
    return field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", cancelable: true, ...how }));
}"""


@pytest.mark.parametrize("how", [{"isComposing": True}, {"keyCode": 229}], ids=["elsewhere", "safari"])
def test_the_enter_of_an_input_method_sends_nothing(browser: Browser, tmp_path: Path, how: dict[str, object]) -> None:
    with server_process(tmp_path) as server:
        page = open_page(browser.new_context(viewport={"width": 1200, "height": 800}), server.web_port, "ada")
        page.fill("#add-text", "tea")
        page.press("#add-text", "Enter")
        await_head(page, 1)
        for field in ("#composer", "#name", "#entries .value", "#channel"):
            page.fill(field, "nihao")
            assert page.locator(field).evaluate(IS_LEFT_TO_THE_INPUT_METHOD, how), field
            expect(page.locator(field)).to_be_focused()
        page.context.close()


def test_characters_that_are_piled_up_stay_within_their_message(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        grace = Netcat(server.tcp_port, "grace")
        grace.type("first\n")
        page = a_page(browser, server, "ada")
        await_head(page, 1)
        first = page.locator("#log [data-offset='1'] .text")
        before = first.screenshot()
        grace.type("a" + "\u030f" * 30 + "\n")
        await_head(page, 2)
        assert first.screenshot() == before
        grace.close()
        page.context.close()


def test_a_channel_that_cannot_be_is_named_as_it_was_written(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = a_page(browser, server, "ada", "/#café")
        expect(page.locator("#channel")).to_have_value("lobby")
        page.evaluate("location.hash = 'naïve'")
        expect(page.locator("#note")).to_contain_text("“naïve” cannot be a channel.")
        expect(page).to_have_url(re.compile("#lobby$"))
        page.evaluate("location.hash = 'a%3Ab'")
        expect(page.locator("#channel")).to_have_value("a:b")
        page.evaluate("location.hash = 'naïve'")
        expect(page.locator("#note")).to_contain_text("“naïve” cannot be a channel.")
        expect(page).to_have_url(re.compile("#a%3Ab$"))
        page.go_back()
        expect(page.locator("#channel")).to_have_value("lobby")
        expect(page.locator("#note")).to_be_empty()
        page.context.close()


def test_a_name_that_is_only_being_typed_makes_nobody_elses_words_mine(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = a_page(browser, server, "ada")
        page.fill("#name", "grace")
        grace = Netcat(server.tcp_port, "grace")
        grace.type("hello\n")
        await_head(page, 1)
        expect(page.locator("#log .row.own")).to_have_count(0)
        grace.close()
        page.context.close()


def test_a_name_that_no_server_takes_is_not_remembered(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        context = browser.new_context()
        context.add_init_script("localStorage.name = 'half \\ud800'")
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.web_port}/")
        await_state(page, "online")
        expect(page.locator("#name")).to_have_value(re.compile("^guest-"))
        context.close()


def test_who_is_there_stands_in_the_order_in_which_people_count(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        others = [Netcat(server.tcp_port, name) for name in ("guest-10", "3 bears", "guest-9")]
        with socket.create_connection(("127.0.0.1", server.tcp_port), timeout=PATIENCE_S) as nameless:
            nameless.sendall(b"/who\n")
            page = a_page(browser, server, "zoe")
            people = page.locator("#members .name")
            expect(people).to_have_text(["zoe", "3 bears", "guest-9", "guest-10", "anonymous"])
            page.context.close()
        for other in others:
            other.close()


LOOKS_AT_A_CROWD = """async (step) => {
    const { showPeople } = await import("/people.js");
    let looks = 0;
    const members = new Map();
    for (let index = 0; index < 20_000; index++) {
        const number = (index * step) % 20_000;
        members.set(number, { member: number, get name() { return looks++, `guest-${number}`; } });
    }
    showPeople({ members, member: 777 }, true);
    const texts = (selector) => [...document.querySelectorAll(selector)].map((shown) => shown.textContent);
    return [looks, texts("#people-title, #members .name, #members .more")];
}"""


@pytest.mark.parametrize("step", [1, 7919, 19_999], ids=["first_to_last", "mixed", "last_to_first"])
def test_of_a_crowd_only_those_are_put_in_order_who_are_shown(browser: Browser, tmp_path: Path, step: int) -> None:
    with server_process(tmp_path) as server:
        page = a_page(browser, server, "ada")
        looks, shown = page.evaluate(LOOKS_AT_A_CROWD, step)
        assert shown == ["20000 here", *(f"guest-{number}" for number in (777, *range(49))), "and 19950 more"]
        assert looks < 7 * 20_000  # to put a mixed crowd in order, it takes 26 at each
        page.context.close()


CLOSED = """
import trisync

server = trisync.Server()


@server.on_connect
async def refuse(client):
    raise trisync.Refuse("the house is closed")
"""


def test_what_is_written_after_the_end_stays_where_it_was_written(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed.py").write_text(CLOSED)
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    with server_process(data) as server:
        page = open_page(browser.new_context(viewport={"width": 1200, "height": 800}), server.web_port, "ada")
        page.fill("#add-text", "tea")
        page.press("#add-text", "Enter")
        await_head(page, 1)
    with server_process(data, "--app", "closed:server", web_port=server.web_port):
        await_state(page, "closed")
        expect(page.locator("#banner")).to_contain_text("the house is closed")
        expect(page.locator("#banner")).not_to_contain_text("You can go on writing")
        say(page, "written with care")
        expect(page.locator("#composer")).to_have_value("written with care")
        expect(page.locator("#note")).to_contain_text("Not sent: the house is closed")
        page.fill("#add-text", "bread")
        page.press("#add-text", "Enter")
        expect(page.locator("#add-text")).to_have_value("bread")
        expect(page.locator("#board-note")).to_contain_text("Not saved: the house is closed")
        page.locator("#entries .done").click()
        expect(page.locator("#entries .done")).not_to_be_checked()
        page.fill("#entries .value", "green tea")
        page.press("#entries .value", "Enter")
        expect(page.locator("#entries .value")).to_have_value("green tea")
    with server_process(data, web_port=server.web_port):
        page.get_by_role("button", name="Reload the page").click()
        await_head(page, 1)
        page.context.close()


def test_escape_closes_the_help_and_goes_back_to_where_it_was_opened(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = a_page(browser, server, "ada")
        page.locator("#help summary").click()
        page.locator("#help p").first.click()
        page.keyboard.press("Escape")
        expect(page.locator("#help-netcat")).to_be_hidden()
        expect(page.locator("#help summary")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#help-netcat")).to_be_visible()
        page.locator("#composer").focus()
        page.keyboard.press("Escape")
        expect(page.locator("#help-netcat")).to_be_hidden()
        expect(page.locator("#composer")).to_be_focused()
        page.context.close()
