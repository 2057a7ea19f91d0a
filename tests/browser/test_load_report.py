"""The load test's report in a real browser."""

from playwright.sync_api import Browser

from tests.loadtest.test_reports import recorded, result, steady
from trisync.loadtest.report_html import to_html

TEXT_HEIGHT = "document.querySelector('.tick').getBoundingClientRect().height"


def test_a_plot_that_is_alone_is_as_large_as_one_among_others(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    heights = []
    for ticks in (steady()[:2], steady()):
        page.set_content(to_html(result(recorded(*ticks))))
        heights.append(page.evaluate(TEXT_HEIGHT))
    page.close()
    assert heights[0] == heights[1]
