"""Numbers that others published: shown beside what was measured, and marked as such.

[[literature]]
label = "PBP"
source = "Hernandez-Lobato & Adams 2015, arXiv 1502.05336, Table 1"
spread = "standard errors over splits"                        # optional: what ± is there
data.uci_yacht = { rmse = [1.02, 0.05], nll = [1.63, 0.02] }  # value and spread, or a value
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesify.core.errors import OptionError
from bayesify.core.fields import near
from bayesify.experiments.report.columns import METRICS
from bayesify.experiments.report.records import Record

Value = tuple[float, float | None]
"""A published number, and its spread if one was published."""


@dataclass(frozen=True)
class Literature:
    """One published method.

    Args:
        label: What tables call it.
        source: Where the numbers stand, in full.
        spread: What the numbers after ± are; "" where it needs no word.
        values: By data, then by metric. Data go by the name of a source, or its file's stem.
    """

    label: str
    source: str
    spread: str
    values: Mapping[str, Mapping[str, Value]]

    def records(self, sources: Mapping[str, str]) -> list[Record]:
        """A line of the results for each of the data that it has numbers for.

        Args:
            sources: Names in tables by source.
        """
        return [
            {
                "literature": self.label,
                "source": self.source,
                "spread": self.spread,
                "data": name,
                "metrics": {
                    metric: {"value": value, "spread": spread}
                    for metric, (value, spread) in self.values[key].items()
                },
            }
            for source, name in sources.items()
            for key in (source, stem(source))
            if key in self.values
        ]


def stem(source: str) -> str:
    """The name of a file without folder and ending; known data keep their name.

    >>> stem("uci/boston.npz"), stem("digits")
    ('boston', 'digits')
    """
    return Path(source).stem


def read_literature(where: str, tables: Any, data: Sequence[str]) -> tuple[Literature, ...]:
    """The `[[literature]]` tables of a suite.

    Args:
        where: The file, for messages.
        tables: As TOML gives them.
        data: The sources that the file compares.

    Raises:
        OptionError: a table lacks something, or names data or metrics that do not occur.
    """
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise OptionError(f"{where}: expected literature as [[literature]] tables, got {tables!r}.")
    known = {*data, *map(stem, data)}
    return tuple(
        _read(f"{where}: [[literature]] {number}", each, known)
        for number, each in enumerate(tables, start=1)
    )


def _read(where: str, table: Mapping[str, Any], known: set[str]) -> Literature:
    expected = ("label", "source", "spread", "data")
    for key in table:
        if key not in expected:
            raise OptionError(
                f"{where}: unknown key {key!r}; expected {', '.join(expected)}{near(key, expected)}"
            )
    for key in ("label", "source"):
        if not (isinstance(table.get(key), str) and table[key].strip()):
            raise OptionError(f"{where}: expected a {key} in words, got {table.get(key)!r}.")
    data = table.get("data")
    if not isinstance(data, dict) or not data:
        raise OptionError(
            f"{where}: expected numbers such as data.NAME = {{ rmse = 1.02 }}, got {data!r}."
        )
    for name in data:
        if name not in known:
            raise OptionError(
                f"{where}: data {name!r} are not compared; expected some of "
                f"{', '.join(sorted(known))}{near(name, known)}"
            )
    values = {name: _values(f"{where}, {name}", each) for name, each in data.items()}
    return Literature(table["label"], table["source"], str(table.get("spread", "")), values)


def _values(where: str, table: Any) -> dict[str, Value]:
    if not isinstance(table, dict) or not table:
        raise OptionError(f"{where}: expected metrics and their values, got {table!r}.")
    for metric in table:
        if metric not in METRICS:
            raise OptionError(
                f"{where}: unknown metric {metric!r}; expected some of {', '.join(METRICS)}"
                f"{near(metric, METRICS)}"
            )
    return {metric: _value(f"{where}, {metric}", each) for metric, each in table.items()}


def _value(where: str, given: Any) -> Value:
    pair = given if isinstance(given, list) else [given]
    numbers = [float(each) for each in pair if type(each) in (int, float) and math.isfinite(each)]
    if len(numbers) < len(pair) or len(pair) not in (1, 2):
        raise OptionError(f"{where}: expected a number, or [number, spread], got {given!r}.")
    return numbers[0], numbers[1] if len(numbers) == 2 else None
