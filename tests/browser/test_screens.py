"""The page on screens of every size, light and dark."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.pages import Netcat, await_head, await_state, open_page, say
from tests.harness import server_process

IS_GRACE_SO_WIDE = """wide => [...document.querySelectorAll("#members .name")].some((name) => {
  const { width } = name.getBoundingClientRect();
  return name.textContent === "grace" && (wide ? width > 20 : width <= 1);
})"""

HAS_OUTLINE = """() => [document.activeElement, document.activeElement.parentElement].some(
  (part) => getComputedStyle(part).outlineStyle === "solid"
)"""


def await_width_of_grace(page: Page, *, wide: bool) -> None:
    """Wait until her name can be read, or is there for screen readers alone. The list may be drawn anew meanwhile."""
    page.wait_for_function(IS_GRACE_SO_WIDE, arg=wide)


def test_on_a_small_screen_who_is_there_can_be_read_in_full(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        grace = Netcat(server.tcp_port, "grace")
        grace.type("hello\n")
        context = browser.new_context(viewport={"width": 320, "height": 568})
        page = open_page(context, server.web_port, "ada")
        title = page.get_by_role("button", name="2 here", exact=True)
        await_width_of_grace(page, wide=False)
        title.click()
        expect(title).to_have_attribute("aria-expanded", "true")
        await_width_of_grace(page, wide=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        title.click()
        await_width_of_grace(page, wide=False)
        grace.close()
        context.close()


def test_on_a_small_screen_a_long_name_leaves_room_and_the_help_is_read_to_its_end(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path) as server:
        grace = Netcat(server.tcp_port, "g" * 64)
        grace.type("hello\n/set title Picnic\n")
        context = browser.new_context(viewport={"width": 320, "height": 568})
        page = open_page(context, server.web_port, "ada")
        await_head(page, 2)
        line_height = page.locator("#hint").evaluate("el => 1.5 * parseFloat(getComputedStyle(el).fontSize)")
        time = page.locator("#log .time").bounding_box()
        assert time
        assert time["height"] < 2 * line_height
        expect(page.locator("#log .edit .text")).to_be_in_viewport(ratio=1)
        edit, what = (page.locator(f"#log .edit {part}").bounding_box() for part in (".line", ".text"))
        assert edit
        assert what
        assert what["x"] + what["width"] <= edit["x"] + edit["width"]
        page.locator("#help summary").click()
        page.locator("#help-module").scroll_into_view_if_needed()
        expect(page.locator("#help-module")).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.scrollingElement.scrollHeight") == 568
        grace.close()
        context.close()


def test_on_a_screen_as_low_as_at_400_percent_what_is_said_can_be_read_while_writing(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path) as server:
        context = browser.new_context(viewport={"width": 320, "height": 256})
        page = open_page(context, server.web_port, "ada")
        for offset, text in enumerate(("one", "two"), start=1):
            say(page, text)
            await_head(page, offset)
        for part in ("#log .row", "#composer"):
            expect(page.locator(part).last).to_be_in_viewport(ratio=1)
        page.get_by_role("button", name="Document").click()
        page.fill("#add-text", "tea")
        page.press("#add-text", "Enter")
        for part in ("#entries .entry", "#add-text"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)
        context.close()


def test_on_a_small_screen_another_channel_is_opened_from_the_document_too(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        context = browser.new_context(viewport={"width": 375, "height": 740})
        page = open_page(context, server.web_port, "ada")
        page.get_by_role("button", name="Document").click()
        page.fill("#channel", "another")
        page.press("#channel", "Enter")
        expect(page.locator("#help-join")).to_have_text("/join another")
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1200, 800), (375, 740), (320, 568)])
def test_the_page_fits_and_asks_nobody_else_for_anything(
    browser: Browser, tmp_path: Path, scheme: str, width: int, height: int
) -> None:
    with server_process(tmp_path) as server:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(f"http://127.0.0.1:{server.web_port}/")
        await_state(page, "online")
        page.fill("#name", "a_very_long_name_" * 3)
        page.press("#name", "Enter")
        for offset in range(1, 4):
            say(page, "a_very_long_word_" * 30)
            await_head(page, offset)
        expect(page.locator("#members .me .name")).to_have_text("a_very_long_name_" * 3)
        expect(page.locator("#log .row").last).to_be_in_viewport()
        expect(page.locator("#newer")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{server.web_port}"}
        assert complaints == []
        context.close()


def test_in_forced_colours_too_it_is_seen_what_has_the_focus(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        context = browser.new_context(viewport={"width": 1200, "height": 800}, forced_colors="active")
        page = open_page(context, server.web_port, "ada")
        for part in ("#channel", "#help-title", "#people-title", "#log", "#name", "#composer", "#send", "#add-text"):
            page.focus(part)
            assert page.evaluate(HAS_OUTLINE), part
        context.close()


def test_on_paper_all_messages_stand_that_the_page_has(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        grace = Netcat(server.tcp_port, "grace")
        grace.type("".join(f"line {number}\n" for number in range(100)))
        context = browser.new_context()
        page = open_page(context, server.web_port, "ada")
        await_head(page, 100)
        page.locator("#skip").focus()
        page.emulate_media(media="print")
        rows = page.locator("#log .row")
        first, last = (rows.nth(index).bounding_box() for index in (0, -1))
        frame = page.locator("#log").bounding_box()
        assert first
        assert last
        assert frame
        assert frame["y"] <= first["y"] < last["y"] + last["height"] <= frame["y"] + frame["height"]
        for pressed in ("#skip", "#composer"):
            expect(page.locator(pressed)).to_be_hidden()
        grace.close()
        context.close()
