"""Web addresses in the chat: what can be followed, and what cannot."""

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.browser.pages import await_head, open_page, say, texts
from tests.harness import server_process


def test_web_addresses_can_be_followed_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = open_page(browser.new_context(), server.web_port, "ada")
        text = "see https://a.example/b?c=(d)#e, (http://a.example/f). Not javascript:alert(1), https:// or <b>http</b>"
        say(page, text)
        await_head(page, 1)
        assert texts(page) == [text]
        links = page.locator("#log .text a")
        assert links.evaluate_all("links => links.map(({ href, rel }) => [href, rel])") == [
            ["https://a.example/b?c=(d)#e", "noreferrer"],
            ["http://a.example/f", "noreferrer"],
        ]
        page.context.close()


def test_a_web_address_has_its_brackets_and_nothing_that_stands_around_it(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = open_page(browser.new_context(), server.web_port, "ada")
        encyclopedia = "(see https://a.example/Foo_(bar)). Https://b.example, as a telephone has it"
        quoted = '“https://c.example/d”… `https://c.example/e` and "https://c.example/f\\n"'
        turned = "https://d.example/\u202egpj.exe"
        for offset, text in enumerate((encyclopedia, quoted, turned), start=1):
            say(page, text)
            await_head(page, offset)
        links = page.locator("#log .text a")
        assert links.evaluate_all("links => links.map(({ href }) => href)") == [
            "https://a.example/Foo_(bar)",
            "https://b.example/",
            "https://c.example/d",
            "https://c.example/e",
            "https://c.example/f",
            "https://d.example/",
        ]
        page.context.close()


PLACES = """link => [0, link.textContent.length - 1].map((index) => {
    const range = document.createRange();
    range.setStart(link.firstChild, index);
    range.setEnd(link.firstChild, index + 1);
    return range.getBoundingClientRect().left;
})"""


def test_a_web_address_reads_from_left_to_right_also_where_the_text_does_not(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        page = open_page(browser.new_context(), server.web_port, "ada")
        say(page, "שלום https://a.example/b/")
        await_head(page, 1)
        assert page.locator("#log .text").evaluate("text => getComputedStyle(text).direction") == "rtl"
        first, last = page.locator("#log .text a").evaluate(PLACES)
        assert first < last
        page.context.close()


def test_a_long_text_is_not_cut_within_an_address_and_not_all_of_a_thousand_are_links(
    browser: Browser, tmp_path: Path
) -> None:
    with server_process(tmp_path) as server:
        page = open_page(browser.new_context(), server.web_port, "ada")
        say(page, "x" * 3980 + " https://a.example/not-to-be-cut")
        await_head(page, 1)
        say(page, "http://a " * 70_000)
        await_head(page, 2)
        links, more = page.locator("#log .text a"), page.locator("#log .more")
        expect(links).to_have_count(4000 // len("http://a "))
        for left in (1, 0):
            more.first.click()
            expect(more).to_have_count(left)
        expect(links).to_have_count(501)
        assert len(page.locator("#log [data-offset='2'] .text").inner_text()) >= 69_999 * len("http://a ")
        expect(links.first).to_have_attribute("href", "https://a.example/not-to-be-cut")
        page.context.close()
