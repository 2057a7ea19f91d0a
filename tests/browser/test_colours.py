"""The page's two palettes: every text can be read on what it stands on (WCAG 2.2, 1.4.3 and 1.4.11)."""

import re

import pytest

from tests.browser.node import WEB

TEXT_MIN = 4.5
EDGE_MIN = 3.0

PALETTES = [
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    for block in re.findall(r":root \{(.*?)\}", (WEB / "style.css").read_text(), re.DOTALL)[:2]
]
NAMES = [f"hue-{number}" for number in range(6)]
STANDS_ON = {
    "paper": ["ink", "quiet", "accent", "good", "wait", "bad", *NAMES],
    "raised": ["ink", "quiet", "accent", "good", "wait", "bad"],
    "own": ["ink", "quiet", "accent", "bad"],
    "code": ["ink"],
    "warn-paper": ["ink"],
    "accent": ["accent-ink"],
}


def luminance(colour: str) -> float:
    """The relative luminance of a colour, 0 to 1."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("palette", PALETTES, ids=["light", "dark"])
def test_every_text_can_be_read_on_what_it_stands_on(palette: dict[str, str]) -> None:
    for ground, texts in STANDS_ON.items():
        for text in texts:
            assert contrast(palette[text], palette[ground]) >= TEXT_MIN, (text, ground)
    assert contrast(palette["edge"], palette["paper"]) >= EDGE_MIN
