"""Records that may be compared, and their averages over folds and seeds.

Runs are compared when they share data, model, split and out-of-distribution data. Within such a
group, runs of the same method with the same options and setup differ by their fold and seed only
and are averaged:

    mean = 1/n sum_i x_i,    standard error = sqrt(sum_i (x_i - mean)^2 / (n - 1)) / sqrt(n)

Where there are several folds, x_i is the mean over the seeds of fold i: runs that share their data
say less together than as many independent ones.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bayesify.report.columns import COST, METRICS
from bayesify.report.records import Record, is_published


@dataclass(frozen=True)
class Estimate:
    """A mean over n folds, or over n seeds of one; a single one has no standard error."""

    mean: float
    standard_error: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """One method with one set of options: its runs, one per fold and seed."""

    label: str
    runs: tuple[Record, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs, in order."""
        return sorted({run["seed"] for run in self.runs})

    @property
    def folds(self) -> list[int]:
        """The folds of the runs, in order; none where the data have one test part only."""
        return sorted({run["fold"] for run in self.runs if run.get("fold") is not None})

    def estimate(self, name: str) -> Estimate | None:
        """Mean of a metric or a cost; None where a run lacks it or it is not finite."""
        kind = "cost" if name in COST else "metrics"
        values: dict[int | None, list[float | None]] = {}
        for run in self.runs:
            values.setdefault(run.get("fold"), []).append((run.get(kind) or {}).get(name))
        if len(values) == 1:
            return estimate(*values.values())
        means = [estimate(each) for each in values.values()]
        return estimate(None if each is None else each.mean for each in means)

    def mean(self, name: str) -> float | None:
        """Only the mean of `estimate`."""
        found = self.estimate(name)
        return None if found is None else found.mean


@dataclass(frozen=True)
class Published:
    """Numbers that others published: not measured here, and never averaged or ranked.

    Args:
        label: Name of the method.
        source: Where the numbers stand.
        spread: What the numbers after ± are; "" where nothing was said.
        values: By metric: the number and its spread, None where none was published.
    """

    label: str
    source: str
    spread: str
    values: Mapping[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Group:
    """All methods on one data set with one model, and what others published on these data."""

    data: str
    model: str
    split: str
    ood: str | None
    task: str
    rows: tuple[Row, ...]
    published: tuple[Published, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics measured, described ones first and in their order."""
        return _ordered({name for row in self.rows for run in row.runs for name in run["metrics"]})

    @property
    def costs(self) -> list[str]:
        """Names of the costs that at least one row has."""
        return [name for name in COST if any(row.estimate(name) for row in self.rows)]

    @property
    def seeds(self) -> list[int]:
        """All seeds that occur, in order."""
        return sorted({seed for row in self.rows for seed in row.seeds})

    @property
    def folds(self) -> list[int]:
        """All folds that occur, in order."""
        return sorted({fold for row in self.rows for fold in row.folds})


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean and standard error; None for no values, or if any is missing or not finite.

    >>> estimate([1.0, 3.0])
    Estimate(mean=2.0, standard_error=1.0, n=2)
    """
    numbers = list(values)
    finite = [float(each) for each in numbers if each is not None and math.isfinite(each)]
    if not numbers or len(finite) < len(numbers):
        return None
    n = len(finite)
    error = statistics.stdev(finite) / math.sqrt(n) if n > 1 else None
    return Estimate(statistics.fmean(finite), error, n)


def groups(records: Iterable[Record]) -> list[Group]:
    """Records by data, model, split and OOD data, in the order they first occur.

    A cell that was run twice counts once, the later run. A method that occurs with several sets of
    options gets a row for each: `stf`, `stf #2`, ... Published numbers stand in all groups of a
    test part of their data; of two with one name the later counts.
    """
    cells: dict[tuple[str, ...], dict[tuple[str, str], dict[tuple[int, int], Record]]] = {}
    tasks: dict[tuple[str, ...], str] = {}
    published: dict[tuple[str, str], dict[str, Published]] = {}
    for record in records:
        if is_published(record):
            beside = published.setdefault((record["data"], "test"), {})
            beside[record["literature"]] = _published(record)
            continue
        key = (record["data"], record["model"], record["split"], record.get("ood") or "")
        options = json.dumps([record.get("options"), record.get("setup")], sort_keys=True)
        tasks.setdefault(key, record["task"])
        runs = cells.setdefault(key, {}).setdefault((record["method"], options), {})
        fold = record.get("fold")
        runs[-1 if fold is None else fold, record["seed"]] = record
    return [
        Group(
            *key[:3],
            ood=key[3] or None,
            task=tasks[key],
            rows=_rows(cell),
            published=tuple(published.get((key[0], key[2]), {}).values()),
        )
        for key, cell in cells.items()
    ]


def _published(record: Record) -> Published:
    values = {name: (each["value"], each.get("spread")) for name, each in record["metrics"].items()}
    return Published(record["literature"], record["source"], record.get("spread", ""), values)


def _rows(cell: dict[tuple[str, str], dict[tuple[int, int], Record]]) -> tuple[Row, ...]:
    rows: list[Row] = []
    seen: Counter[str] = Counter()
    for (method, _), runs in cell.items():
        seen[method] += 1
        label = method if seen[method] == 1 else f"{method} #{seen[method]}"
        rows.append(Row(label, tuple(runs[place] for place in sorted(runs))))
    return tuple(rows)


def _ordered(names: set[str]) -> list[str]:
    known = [name for name in METRICS if name in names]
    return known + sorted(names - set(known))
