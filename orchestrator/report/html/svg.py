"""Elements of static SVG, and axes.

A chart is as wide as its place: x is a share of the chart's width, in percent, and y is in pixels.
So a chart fits a phone and a sheet of paper without a script, and its text keeps its size. No
library draws such charts: those for static SVG scale their text with the picture.

Colours are classes of report.css, which has them for a light and for a dark page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from orchestrator.base.printable import escape_unprintable

_INSET = 0.8
"""Percent of the width that stay free at both ends, so that nothing is cut off."""
_MOST_TICKS = 6


def element(name: str, *content: str | Markup, **attributes: object) -> Markup:
    """Return an element. Content and values are escaped, unless they are Markup. Attributes that
    are None are left out; `class_` and `font_size` become `class` and `font-size`."""
    texts = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _shown(value))
        for key, value in attributes.items() if value is not None
    ]  # fmt: skip
    inner = Markup("").join(c if isinstance(c, Markup) else _text(c) for c in content)
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(texts), inner)


def chart(height: float, label: str, *content: Markup, name: str = "") -> Markup:
    """Return a whole chart. `label`: what it shows, for those who do not see it."""
    return element(
        "svg", *content, class_=f"chart {name}".rstrip(), width="100%", height=height, role="img",
        aria_label=label,
    )  # fmt: skip


def text(x: str, y: float, content: str, class_: str = "", anchor: str | None = None) -> Markup:
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: str, y1: float, x2: str, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: str, y: float, width: str, height: float, class_: str, title: str = "") -> Markup:
    """Return a bar. `title` is shown by a pointer that rests on it."""
    inside = [element("title", title)] if title else []
    return element("rect", *inside, x=x, y=y, width=width, height=height, class_=class_)


def labelled_rect(
    x: str, y: float, width: str, height: float, class_: str, title: str, label: str
) -> Markup:
    """Return a bar with a text inside, which is cut off at the bar's end."""
    return element(
        "svg",
        element("title", title),
        element("rect", width="100%", height="100%", class_=class_),
        element("text", label, x=3, y=height - 5, class_="inside"),
        x=x, y=y, width=width, height=height,
    )  # fmt: skip


def percent(share: float) -> str:
    """Return a share of the chart's width as a length."""
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + "%"


def _shown(value: object) -> str:
    return (
        f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else _text(str(value))
    )


def _text(content: str) -> Markup:
    return escape(escape_unprintable(content))


@dataclass(frozen=True)
class Axis:
    """An axis from left to right or from bottom to top. low < high; on a logarithmic axis both
    are positive."""

    low: float
    high: float
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return the place of a value on the axis: 0 is its beginning, 1 its end."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def x(self, value: float) -> str:
        """Return the place of a value from left to right, within the chart."""
        share = min(1.0, max(0.0, self.share(value)))
        return percent((_INSET + (100 - 2 * _INSET) * share) / 100)

    def width(self, start: float, end: float) -> str:
        """Return the length from one value to another."""
        first, last = (min(1.0, max(0.0, self.share(value))) for value in (start, end))
        return percent((100 - 2 * _INSET) * max(0.0, last - first) / 100)

    def y(self, value: float, top: float, bottom: float) -> float:
        """Return the place of a value from bottom to top, in pixels."""
        return bottom - (bottom - top) * self.share(value)

    def ticks(self, most: int = _MOST_TICKS) -> list[float]:
        """Return round values on the axis, at most about `most`."""
        return self._log_ticks(most) if self.is_log else self._linear_ticks(most)

    def _linear_ticks(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [round((first + number) * step, 12) for number in range(count)]

    def _log_ticks(self, most: int) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            every = [d * 10.0**power for power, d in itertools.product(powers, digits)]
            inside = [v for v in every if self.low * 0.999 <= v <= self.high * 1.001]
            if len(inside) <= most:
                break
        return inside[:: math.ceil(len(inside) / most)] if inside else [self.low]


def axis_of(values: Sequence[float], log_from: float | None = None) -> Axis:
    """Return an axis that holds the values, with some room. It is logarithmic if the largest value
    is more than `log_from` times the smallest, which is positive."""
    low, high = min(values), max(values)
    if log_from is not None and low > 0 and high > log_from * low:
        return Axis(low / (high / low) ** 0.08, high * (high / low) ** 0.08, is_log=True)
    room = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    return Axis(low - room if low - room > 0 or low < 0 else 0.0, high + room)
