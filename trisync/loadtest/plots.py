"""Plots as SVG text: lines over a linear, logarithmic or percentile axis. Colours are CSS variables of the page."""

import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 480, 260
"""Little wider than on a phone, where everything in a plot shrinks with it, its labels too."""
NINES_MAX = 5
"""How far the percentile axis goes: to 99.999 %."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 14, 40

Points = Sequence[tuple[float, float | None]]
"""None is a gap in the line."""


class Line(NamedTuple):
    """A line of a plot."""

    label: str
    points: Points
    filled: bool = False


class Axis(NamedTuple):
    """An axis: how values become places between 0 and 1, and which of them are written on it."""

    place: Callable[[float], float]
    ticks: list[tuple[float, str]]
    label: str = ""


def linear_axis(
    values: Sequence[float],
    text: Callable[[float], str],
    *,
    label: str = "",
    base: float = 1000.0,
    least: float = 0.0,
    tight: bool = False,
) -> Axis:
    """From 0 to just above the largest value, or `tight`, to it. `base` is 1024 for sizes in bytes; as text there is
    nothing between the multiples of `least`."""
    top = max(values, default=0) or 1
    step = nice_step(top / 4.5, base, least)
    end = top if tight else step * math.ceil(top / step * 0.999)
    ticks = [(step * number, brief(text(step * number))) for number in range(int(end / step * 1.001) + 1)]
    return Axis(lambda value: value / end, ticks, label)


def brief(text: str) -> str:
    """A figure without the last zeros behind its point: 3 ms for 3.00 ms, 1.5 k for 1.50 k."""
    return _ZEROS.sub("", text)


_ZEROS = re.compile(r"(\.0|(?<=\.\d))0*(?= |$)")


def nice_step(wanted: float, base: float, least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten, in units of `base`'s power, that is not below what is
    wanted, and a multiple of `least`."""
    wanted = max(wanted, least)
    unit = base ** math.floor(math.log(wanted, base)) if base != 1000.0 else 1.0
    power = 10.0 ** math.floor(math.log10(wanted / unit))
    steps = [round(unit * power * factor, 9) for factor in (1, 2, 2.5, 5, 10)]
    return next(step for step in steps if step >= wanted * 0.999 and (not least or round(step / least, 6) % 1 == 0))


def log_axis(values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """From below the smallest value to above the largest, decades ticked; values below 1 count as 1."""
    values = [max(1.0, value) for value in values] or [1.0]
    low, high = math.log10(min(values)), math.log10(max(values))
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    # Half a decade is cut off where nothing lies in it.
    start = first + 0.477 if low > first + 0.5 else float(first)
    end = last - 0.523 if high < last - 0.55 and last - 0.523 > start + 0.3 else float(last)
    ticks = [
        (factor * 10.0**decade, brief(text(factor * 10.0**decade)))
        for decade in range(first, last + 1)
        for factor in (1, 3)
        if start - 0.01 <= math.log10(factor * 10.0**decade) <= end + 0.01
    ]
    return Axis(lambda value: (math.log10(max(1.0, value)) - start) / (end - start), ticks)


def percentile_axis(count: int) -> Axis:
    """HDR's scale: each nine of the percentile is as wide as the one before it, up to one in `count`."""
    nines = min(NINES_MAX, max(2, math.ceil(math.log10(max(count, 10)) - 0.3)))
    texts = ["", "90", "99"] + [f"99.{'9' * more}" for more in range(1, nines - 1)]  # no room for a % behind each
    ticks = [(100 - 100 * 10.0**-nine, texts[nine]) for nine in range(nines + 1)]
    least = 10.0**-nines

    def place(percentile: float) -> float:
        return -math.log10(max(least, 1 - percentile / 100)) / nines

    return Axis(place, [(50.0, "50"), *ticks], "percentile")


def plot(title: str, lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> str:
    """A figure: its title, a legend where there is more than one line, and the plot."""
    legend = ""
    if len(lines) > 1:
        items = [f'<li><i class="key s{number}"></i>{escape(line.label)}</li>' for number, line in enumerate(lines, 1)]
        legend = f'<ul class="legend">{"".join(items)}</ul>'
    drawn = "".join(_draw(line, number, x_axis, y_axis) for number, line in reversed([*enumerate(lines, 1)]))
    return (
        f'<figure><div class="top"><figcaption>{escape(title)}</figcaption>{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{_grid(x_axis, y_axis)}{drawn}</svg></figure>"
    )


def _x(axis: Axis, value: float) -> float:
    return round(_LEFT + min(1.0, max(0.0, axis.place(value))) * (WIDTH - _LEFT - _RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(HEIGHT - _BOTTOM - min(1.0, max(0.0, axis.place(value))) * (HEIGHT - _TOP - _BOTTOM), 1)


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    floor, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value, text in y_axis.ticks:
        y = _y(y_axis, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(text)}</text>')
    for value, text in x_axis.ticks:
        x = _x(x_axis, value)
        anchor = "end" if x > right - 12 else "middle"
        parts.append(f'<path class="axis" d="M{x} {floor}v4"/>')
        parts.append(f'<text class="tick" x="{x}" y="{floor + 17}" text-anchor="{anchor}">{escape(text)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{right}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_axis.label)}</text>')
    return "".join(parts)


def _draw(line: Line, number: int, x_axis: Axis, y_axis: Axis) -> str:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((_x(x_axis, x), _y(y_axis, y)))
    return "".join(_draw_piece(places, number, filled=line.filled) for places in pieces if places)


def _draw_piece(places: list[tuple[float, float]], number: int, *, filled: bool) -> str:
    path = "M" + "L".join(f"{x} {y}" for x, y in places)
    if len(places) == 1:
        return f'<circle class="line s{number}" cx="{places[0][0]}" cy="{places[0][1]}" r="3"/>'
    area = ""
    if filled:
        floor = HEIGHT - _BOTTOM
        area = f'<path class="area s{number}" d="{path}L{places[-1][0]} {floor}L{places[0][0]} {floor}Z"/>'
    return f'{area}<path class="line s{number}" d="{path}"/>'
