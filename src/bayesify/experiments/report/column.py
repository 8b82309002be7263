"""One column: how a number is written, ranked and explained."""

import math
from collections.abc import Callable
from dataclasses import dataclass

MISSING = "–"  # noqa: RUF001
"""Shown for what was not measured or is not finite."""

MORE, LESS = math.inf, -math.inf
"""For `Column.best`: more is better, less is better."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: Header, short enough for a terminal.
        kind: A key of `FORMATS`: how a value is written.
        best: The value that would be best: infinity (more is better), minus infinity (less is
            better), a finite value to be near to, or None where there is no better.
        definition: What it is, in one line.
    """

    title: str
    kind: str
    best: float | None
    definition: str

    def text(self, value: float | None) -> str:
        """The value as shown.

        >>> Column("Acc %", "percent", MORE, "").text(0.9712)
        '97.1'
        >>> Column("Disk", "bytes", LESS, "").text(5300)
        '5.3 kB'
        """
        if value is None or not math.isfinite(value):
            return MISSING
        return FORMATS[self.kind](value)

    def difference(self, value: float | None) -> str:
        """A difference of two values, with its sign; nothing but zeros has none.

        >>> shown = Column("Acc %", "percent", MORE, "")
        >>> shown.difference(0.0123), shown.difference(-0.002), shown.difference(-0.0001)
        ('+1.2', '-0.2', '0.0')
        """
        if value is None or not math.isfinite(value):
            return MISSING
        text = self.text(abs(value))
        if not any(digit in text for digit in "123456789"):
            return text
        return f"{'+' if value > 0 else '-'}{text}"

    def published(self, value: float | None) -> str:
        """A number of others: with two digits, or those that it has, where no unit is involved.

        >>> Column("RMSE", "number", LESS, "").published(2.9)
        '2.90'
        >>> Column("Acc %", "percent", MORE, "").published(0.9712)
        '97.1'
        """
        if value is None or self.kind != "number":
            return self.text(value)
        return f"{value:.2f}" if value == round(value, 2) else f"{value:g}"

    def badness(self, value: float) -> float:
        """Sorts values from best (lowest) to worst.

        >>> cover = Column("Cov90 %", "percent", 0.9, "")
        >>> cover.badness(0.9) < cover.badness(1.0)
        True
        """
        if self.best is None:
            return 0.0
        if math.isinf(self.best):
            return -value if self.best > 0 else value
        return abs(value - self.best)

    @property
    def arrow(self) -> str:
        """Which direction is better, for a header."""
        if self.best is None or math.isfinite(self.best):
            return ""
        return "↑" if self.best > 0 else "↓"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _fine_percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _permille(value: float) -> str:
    return f"{1000 * value:.1f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _budget(value: float) -> str:
    """The size of an attack: in 255ths where it is a whole number of them and no short decimal."""
    steps, short = 255 * value, f"{value:.3g}"
    if float(short) != value and abs(steps - round(steps)) < 1e-6 * steps:
        return f"{round(steps)}/255"
    return short


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    divisor, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    scaled = value / divisor
    digits = 0 if abs(scaled) >= 100 or scaled == int(scaled) else 1 if abs(scaled) >= 1 else 2
    return f"{scaled:.{digits}f} {unit}".strip()


def _count(value: float) -> str:
    return _scaled(value, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")))


def _bytes(value: float) -> str:
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def _flops(value: float) -> str:
    units = ("PFLOP", "TFLOP", "GFLOP", "MFLOP", "kFLOP", "FLOP")
    return _scaled(value, tuple(zip((1e15, 1e12, 1e9, 1e6, 1e3, 1.0), units, strict=True)))


def _duration(value: float) -> str:
    hours, minutes = 3600, 60
    if value >= hours:
        return f"{value / hours:.1f} h"
    if value >= 2 * minutes:
        return f"{value / minutes:.1f} min"
    if value >= 1:
        return f"{value:.1f} s"
    return f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.2f} ms"


def _milliseconds(value: float) -> str:
    if value >= 100:
        return f"{value:.0f} ms"
    if value >= 0.1:
        return f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"
    return f"{1000 * value:.1f} µs"


FORMATS: dict[str, Callable[[float], str]] = {
    "percent": _percent,
    "fine percent": _fine_percent,
    "permille": _permille,
    "number": _number,
    "budget": _budget,
    "count": _count,
    "bytes": _bytes,
    "flops": _flops,
    "seconds": _duration,
    "milliseconds": _milliseconds,
}
"""How values are written, by kind; percent and permille are stored as shares."""
