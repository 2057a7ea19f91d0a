"""The shared document of the page: several people and a terminal edit it at once, offline too, and lose no words."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.cuts import Network, network
from tests.browser.pages import Netcat, await_head, await_state, network_is_back, open_page
from tests.harness import PATIENCE_S, ServerProcess, server_process


class World(NamedTuple):
    """Two people before the same document, ada behind a network that can fail."""

    server: ServerProcess
    network: Network
    ada: Page
    bob: Page


@pytest.fixture
def world(browser: Browser, tmp_path: Path) -> Iterator[World]:
    with server_process(tmp_path) as server, network(server.web_port) as net:
        contexts = [browser.new_context(viewport={"width": 1200, "height": 800}) for _ in range(2)]
        ada = open_page(contexts[0], net.port, "ada")
        bob = open_page(contexts[1], server.web_port, "bob")
        yield World(server, net, ada, bob)
        for context in contexts:
            context.close()


def add(page: Page, text: str) -> None:
    page.fill("#add-text", text)
    page.press("#add-text", "Enter")


def line(page: Page, number: int = 0) -> Locator:
    return page.locator("#entries .entry").nth(number)


def value(page: Page, number: int = 0) -> Locator:
    return line(page, number).locator(".value")


def write(page: Page, text: str, number: int = 0) -> None:
    value(page, number).fill(text)
    value(page, number).press("Enter")


def await_saved(*pages: Page) -> None:
    for page in pages:
        expect(page.locator("#entries .entry.pending")).to_have_count(0)


def cut_off(world: World) -> None:
    world.network.has_websockets = False
    world.network.reset()
    await_state(world.ada, "offline", "connecting")


def mend(world: World) -> None:
    world.network.heal()
    network_is_back(world.ada)
    await_state(world.ada, "online")


def test_what_one_person_changes_others_see_at_once(world: World) -> None:
    for text in ("tea", "bread"):
        add(world.ada, text)
    expect(value(world.bob, 1)).to_have_value("bread")
    line(world.bob, 0).locator(".done").check()
    expect(line(world.ada, 0).locator(".done")).to_be_checked()
    expect(world.ada.locator("#board-summary")).to_have_text("1 of 2 done")
    write(world.bob, "green tea")
    expect(value(world.ada)).to_have_value("green tea")
    expect(line(world.ada).locator(".by")).to_have_text("bob")
    line(world.ada, 1).locator(".remove").click()
    expect(world.bob.locator("#entries .entry")).to_have_count(1)
    expect(world.ada.locator("#log .row.edit .text")).to_have_text(
        ["list: tea", "list: bread", "done: tea", "done: green tea", "deleted an item"]
    )
    expect(world.ada.locator("#log .row.edit code")).to_have_count(0)  # a screen reader would say that there is some


def test_what_is_written_from_right_to_left_is_shown_so_also_while_it_is_written(world: World) -> None:
    add(world.ada, "שלום!")
    await_saved(world.ada)
    for field in ("#composer", "#add-text"):
        world.ada.fill(field, "שלום!")
    for field in ("#composer", "#add-text", "#entries .value"):
        expect(world.ada.locator(field)).to_have_css("direction", "rtl")


ENDS = """(element, text) => {
    const nodes = document.createNodeIterator(element, NodeFilter.SHOW_TEXT);
    let node;
    while ((node = nodes.nextNode()) && !node.data.includes(text));
    const start = node.data.indexOf(text);
    return [start, start + text.length - 1].map((index) => {
        const range = document.createRange();
        range.setStart(node, index);
        range.setEnd(node, index + 1);
        return range.getBoundingClientRect().left;
    });
}"""


def test_what_is_written_from_right_to_left_reads_so_within_the_words_of_the_page(world: World) -> None:
    add(world.ada, "שלום!")
    await_saved(world.ada)
    value(world.bob).click()
    value(world.bob).fill("עולם?")
    write(world.ada, "ערב!")
    question = world.bob.locator(".conflict")
    expect(value(world.bob)).to_be_focused()
    await_head(world.bob, 2)
    value(world.bob).press("Enter")
    expect(question).to_contain_text("Meanwhile ada wrote “ערב!”. You wrote “עולם?”.")
    edit = world.bob.locator("#log .row.edit .text").first
    for place, text in ((edit, "שלום!"), (question, "ערב!"), (question, "עולם?")):
        first, last = place.evaluate(ENDS, text)
        assert first > last, text


def test_a_terminal_and_the_page_write_one_document(world: World) -> None:
    grace = Netcat(world.server.tcp_port, "grace")
    grace.type('/set title Picnic\n/set size {"guests": 12}\n')
    expect(value(world.ada, 0)).to_have_value('{"guests":12}')
    expect(value(world.ada, 1)).to_have_value("Picnic")
    write(world.ada, "Picnic on Saturday", 1)
    grace.await_sight("ada: title = Picnic on Saturday\n")
    write(world.ada, '{"guests":13}', 0)
    grace.await_sight(r'ada: size = {"guests":13}\n')
    write(world.ada, "12345678901234567890", 0)
    grace.await_sight("ada: size = 12345678901234567890\n")
    grace.type("/set title null\n")
    expect(world.bob.locator("#entries .entry")).to_have_count(1)
    grace.close()


FLASHES = """() => {
    window.flashed = new Set();
    const note = (changes) => changes.forEach(({ target: { classList, dataset } }) => {
        if (classList.contains("flash")) flashed.add(dataset.key);
    });
    new MutationObserver(note).observe(document, { subtree: true, attributeFilter: ["class"] });
}"""


def test_only_what_others_change_from_now_on_stands_out(world: World) -> None:
    grace = Netcat(world.server.tcp_port, "grace")
    grace.type("/set title Draft\n/set author grace\n")
    await_head(world.bob, 2)
    world.bob.add_init_script(f"({FLASHES})()")
    world.bob.reload()
    await_head(world.bob, 2)
    expect(line(world.bob).locator(".by")).to_have_text("grace")
    grace.type("/set title Report\n")
    await_head(world.bob, 3)
    assert world.bob.evaluate("[...flashed]") == ["title"]
    grace.close()


def publish(world: World, *words: tuple[str, object]) -> None:
    """Somebody else's words, one after the other: each a key and its data."""
    requests = [{"op": "publish", "id": 1, "channel": "lobby", "key": key, "data": data} for key, data in words]
    with socket.create_connection(("127.0.0.1", world.server.tcp_port), timeout=PATIENCE_S) as connection:
        lines = connection.makefile("rw")
        for request in requests:
            print(json.dumps(request), file=lines, flush=True)
            assert json.loads(lines.readline())["op"] == "ok"


def test_who_only_looks_at_a_value_leaves_it_as_it_was(world: World) -> None:
    data = ["line one\nline two", "  indented", {"text": "tea\r\nwith milk ", "done": False}]
    publish(world, *((f"key {number}", value) for number, value in enumerate(data)))
    expect(world.ada.locator("#entries .entry")).to_have_count(3)
    for number in range(3):
        value(world.ada, number).focus()
        value(world.ada, number).press("Tab")
    add(world.ada, "sentinel")
    await_head(world.ada, 4)
    value(world.ada, 0).click()
    value(world.ada, 0).press("End")
    value(world.ada, 0).press_sequentially("!")
    value(world.ada, 0).press("Enter")
    expect(value(world.bob, 0)).to_have_value("line one\nline two!")


def test_a_line_that_is_deleted_is_gone_and_the_next_one_is_at_hand(world: World) -> None:
    for text in ("tea", "bread"):
        add(world.ada, text)
    line(world.ada, 0).locator(".remove").click()
    expect(world.ada.locator("#entries .entry")).to_have_count(1)
    expect(world.ada.get_by_role("button", name="Delete bread")).to_be_focused()
    world.ada.keyboard.press("Enter")
    expect(world.ada.locator("#entries .entry")).to_have_count(0)
    expect(world.ada.locator("#add-text")).to_be_focused()


def test_a_line_that_somebody_else_deletes_goes_when_it_is_left(world: World) -> None:
    publish(world, ("title", "Picnic"))
    value(world.ada).click()
    publish(world, ("title", None))
    await_head(world.ada, 2)
    expect(value(world.ada)).to_be_focused()
    value(world.ada).press("Tab")
    expect(world.ada.locator("#entries .entry")).to_have_count(0)


def test_different_parts_of_one_item_are_changed_at_once_without_a_question(world: World) -> None:
    add(world.ada, "tea")
    expect(value(world.bob)).to_have_value("tea")
    await_saved(world.ada)
    cut_off(world)
    write(world.bob, "green tea")
    line(world.ada).locator(".done").check()
    mend(world)
    for page in (world.ada, world.bob):
        expect(value(page)).to_have_value("green tea")
        expect(line(page).locator(".done")).to_be_checked()
        expect(page.locator(".conflict")).to_have_count(0)


@pytest.mark.parametrize("choice", ["mine", "theirs"])
def test_who_changed_the_same_words_is_asked(world: World, choice: str) -> None:
    add(world.ada, "tea")
    expect(value(world.bob)).to_have_value("tea")
    await_saved(world.ada)
    cut_off(world)
    write(world.bob, "coffee")
    write(world.ada, "water")
    expect(value(world.ada)).to_have_value("water")
    mend(world)
    question = world.ada.locator(".conflict")
    expect(question).to_contain_text("bob wrote “coffee”. You wrote “water”.")
    expect(value(world.bob)).to_have_value("coffee")
    question.locator(f".{choice}").click()
    await_saved(world.ada)
    for page in (world.ada, world.bob):
        expect(value(page)).to_have_value("water" if choice == "mine" else "coffee")
        expect(page.locator(".conflict")).to_have_count(0)


@pytest.mark.parametrize("way", ["a reload", "another channel", "a deletion"])
def test_who_wrote_offline_is_asked_also_after(world: World, way: str) -> None:
    publish(world, ("plan", "tea"))
    expect(value(world.ada)).to_have_value("tea")
    cut_off(world)
    write(world.ada, "water")
    publish(world, ("plan", None if way == "a deletion" else "coffee"))
    if way == "a reload":
        world.ada.reload()
        expect(value(world.ada)).to_have_value("water")
    if way == "another channel":
        world.ada.evaluate("location.hash = 'another'")
    mend(world)
    if way == "another channel":
        expect(world.ada.locator("#note")).to_contain_text("for #lobby was refused: somebody else was faster")
        world.ada.evaluate("location.hash = 'lobby'")
    theirs = "deleted it" if way == "a deletion" else "wrote “coffee”"
    expect(world.ada.locator(".conflict")).to_contain_text(f"Meanwhile somebody {theirs}. You wrote “water”.")
    world.ada.locator(".conflict .mine").click()
    expect(value(world.bob)).to_have_value("water")
    expect(value(world.ada)).to_have_value("water")


def test_a_question_that_is_open_says_what_is_there_now(world: World) -> None:
    publish(world, ("plan", "tea"))
    expect(value(world.bob)).to_have_value("tea")
    cut_off(world)
    write(world.ada, "water")
    write(world.bob, "coffee")
    await_saved(world.bob)
    mend(world)
    question = world.ada.locator(".conflict")
    expect(question).to_contain_text("Meanwhile bob wrote “coffee”. You wrote “water”.")
    write(world.bob, "cocoa")
    expect(question).to_contain_text("Meanwhile bob wrote “cocoa”. You wrote “water”.")
    publish(world, ("plan", "juice"))
    expect(question).to_contain_text("Meanwhile somebody wrote “juice”. You wrote “water”.")
    line(world.bob).locator(".remove").click()
    expect(question).to_contain_text("deleted it. You wrote “water”.")
    question.locator(".theirs").click()
    expect(world.ada.locator("#entries .entry")).to_have_count(0)


def trimmed(server: ServerProcess) -> int:
    """The newest message of the lobby that is no longer kept."""
    address = f"http://127.0.0.1:{server.web_port}/channels/lobby/messages?limit=1"
    with urlopen(address, timeout=PATIENCE_S) as answer:
        offset: int = json.load(answer)["trimmed"]
        return offset


def test_nobody_is_said_to_have_written_what_somebody_else_wrote(browser: Browser, tmp_path: Path) -> None:
    options = ("--retention", "lobby messages=5", "--retention-tick-s", "0.02")
    with server_process(tmp_path, *options) as server, network(server.web_port) as net:
        context = browser.new_context(viewport={"width": 1200, "height": 800})
        world = World(server, net, open_page(context, net.port, "ada"), context.new_page())
        grace, eve = Netcat(server.tcp_port, "grace"), Netcat(server.tcp_port, "eve")
        grace.type("/set title Picnic\n")
        expect(line(world.ada).locator(".by")).to_have_text("grace")
        cut_off(world)
        eve.type("/set title Party\n" + "more\n" * 20)
        eve.await_sight("#lobby 22 eve: more\n")
        while trimmed(server) < 17:
            pass
        mend(world)
        expect(value(world.ada)).to_have_value("Party")
        expect(line(world.ada).locator(".by")).to_have_text("")
        grace.type("/set title Feast\n")
        expect(line(world.ada).locator(".by")).to_have_text("grace")
        value(world.ada).fill("Dinner")
        cut_off(world)
        publish(world, ("title", None))
        eve.type("more\n" * 20)
        eve.await_sight("#lobby 44 eve: more\n")
        while trimmed(server) < 39:
            pass
        mend(world)
        await_head(world.ada, 44)
        value(world.ada).blur()
        expect(world.ada.locator(".conflict")).to_contain_text("Meanwhile somebody deleted it. You wrote “Dinner”.")
        grace.close()
        eve.close()
        context.close()


def test_what_is_being_typed_is_not_overwritten(world: World) -> None:
    add(world.ada, "tea")
    expect(value(world.bob)).to_have_value("tea")
    value(world.ada).click()
    value(world.ada).press_sequentially(" with milk")
    write(world.bob, "coffee")
    expect(line(world.ada).locator(".by")).to_have_text("bob")
    expect(value(world.ada)).to_have_value("tea with milk")
    value(world.ada).press("Enter")
    expect(world.ada.locator(".conflict")).to_contain_text("bob wrote “coffee”")
    expect(value(world.ada)).to_have_value("coffee")


def test_what_is_being_typed_belongs_to_the_channel_that_is_left(world: World) -> None:
    publish(world, ("plan", "tea"))
    value(world.ada).click()
    value(world.ada).press_sequentially(" with milk")
    world.ada.evaluate("location.hash = 'another'")
    expect(value(world.bob)).to_have_value("tea with milk")
    expect(world.ada.locator("#entries .entry")).to_have_count(0)


def test_who_types_while_a_value_becomes_another_kind_is_asked(world: World) -> None:
    publish(world, ("plan", "tea"))
    value(world.ada).click()
    value(world.ada).press_sequentially(" with milk")
    publish(world, ("plan", {"text": "coffee", "done": False}))
    question = world.ada.locator(".entry.item .conflict")
    expect(question).to_contain_text("wrote “coffee”. You wrote “tea with milk”.")
    expect(question).to_be_focused()
    question.locator(".mine").click()
    expect(value(world.bob)).to_have_value("tea with milk")


def test_a_document_that_is_too_long_shows_what_one_adds_and_what_there_is_place_for(world: World) -> None:
    publish(world, *((f"key {number:03}", number) for number in range(301)))
    lines, summary = world.ada.locator("#entries .entry"), world.ada.locator("#board-summary")
    expect(summary).to_have_text("301 entries · 1 not shown")
    add(world.ada, "tea")
    expect(value(world.ada, 300)).to_have_value("tea")
    expect(value(world.ada, 300)).to_be_in_viewport()
    for _ in range(2):
        line(world.ada).locator(".remove").click()
    expect(lines).to_have_count(300)
    expect(world.ada.locator("[data-key='key 300']")).to_be_attached()


def test_a_document_is_edited_offline_and_over_a_reload(world: World) -> None:
    add(world.ada, "tea")
    await_saved(world.ada)
    cut_off(world)
    add(world.ada, "bread")
    write(world.ada, "green tea")
    expect(world.ada.locator("#entries .entry.pending")).to_have_count(2)
    world.ada.reload()
    await_state(world.ada, "offline", "connecting")
    for number, text in enumerate(("green tea", "bread")):
        expect(world.ada.locator("#entries .entry.pending .value").nth(number)).to_have_value(text)
    expect(world.ada.locator("#banner")).to_contain_text("2 changes wait")
    mend(world)
    await_saved(world.ada)
    for page in (world.ada, world.bob):
        expect(value(page, 0)).to_have_value("green tea")
        expect(value(page, 1)).to_have_value("bread")


def test_what_the_server_refuses_is_rolled_back_and_said(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path, "--keys-max", "1") as server:
        page = open_page(browser.new_context(viewport={"width": 1200, "height": 800}), server.web_port, "ada")
        add(page, "tea")
        await_saved(page)
        add(page, "bread")
        expect(page.locator("#board-note")).to_contain_text("Not saved")
        expect(page.locator("#entries .entry .value")).to_have_count(1)
        page.context.close()


def test_on_a_phone_the_chat_and_the_document_take_turns_and_everything_has_a_name(world: World) -> None:
    page = world.ada
    add(page, "tea")
    page.set_viewport_size({"width": 320, "height": 568})
    expect(page.locator(".board")).to_be_hidden()
    page.get_by_role("button", name="Document").click()
    expect(page.get_by_role("button", name="Document")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".chat")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    expect(page.get_by_role("textbox", name="Item", exact=True)).to_have_value("tea")
    expect(page.get_by_role("checkbox", name="Done: tea")).to_be_visible()
    expect(page.get_by_role("button", name="Delete tea")).to_be_visible()
    page.get_by_role("textbox", name="New item").press("Tab")
    expect(page.get_by_role("button", name="Add")).to_be_focused()
    stray = "li:not(:is(ul, ol):not([role]) > li)"
    expect(page.locator(stray)).to_have_count(0)  # a log, by its role, is no list
