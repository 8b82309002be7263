"""Records that may be compared, and their averages over folds and seeds.

Runs are compared when they share data, model, split and out-of-distribution data. Within such a
group, runs of the same method with the same options and setup differ by their fold and seed only
and are averaged:

    mean = 1/n sum_i x_i,    standard error = sqrt(sum_i (x_i - mean)^2 / (n - 1)) / sqrt(n)

Where there are several folds, x_i is the mean over the seeds of fold i: runs that share their data
say less together than as many independent ones. A single run has no such error; where its record
holds one of its own, over its examples (`membership_auc_se` for `membership_auc`), that is taken.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bayesify.experiments.report.columns import COST, METRICS, topic_of
from bayesify.experiments.report.records import Record, is_published

WITHIN = "_se"
"""Ends the name of a standard error within a run."""


@dataclass(frozen=True)
class Estimate:
    """A mean over n folds, or over n seeds of one.

    The standard error is that of the mean; of a single run it is that over its examples, or None.
    """

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
        if len(self.runs) == 1:
            return self._single(kind, name)
        return over_folds((run.get("fold"), (run.get(kind) or {}).get(name)) for run in self.runs)

    def mean(self, name: str) -> float | None:
        """Only the mean of `estimate`."""
        found = self.estimate(name)
        return None if found is None else found.mean

    def _single(self, kind: str, name: str) -> Estimate | None:
        numbers = self.runs[0].get(kind) or {}
        found = estimate([numbers.get(name)])
        own = estimate([numbers.get(name + WITHIN)])
        return replace(found, standard_error=own.mean) if found and own else found


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
        found = {name for row in self.rows for run in row.runs for name in run["metrics"]}
        return _ordered({name for name in found if not name.endswith(WITHIN)})

    @property
    def costs(self) -> list[str]:
        """Names of the costs that at least one row has."""
        return [name for name in COST if any(row.estimate(name) for row in self.rows)]

    def names(self, topic: str) -> list[str]:
        """The numbers of a topic that were measured; those nobody described are quality."""
        if topic == "cost":
            return self.costs
        return [name for name in self.metrics if topic_of(name) == topic]

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


def over_folds(values: Iterable[tuple[int | None, float | None]]) -> Estimate | None:
    """Mean and standard error of (fold, value) pairs; seeds within a fold are averaged first.

    >>> over_folds([(0, 1.0), (0, 3.0), (1, 4.0)])
    Estimate(mean=3.0, standard_error=1.0, n=2)
    >>> over_folds([(None, 1.0), (None, 3.0)]).n
    2
    """
    folds: dict[int | None, list[float | None]] = {}
    for fold, value in values:
        folds.setdefault(fold, []).append(value)
    if len(folds) == 1:
        return estimate(*folds.values())
    means = [estimate(each) for each in folds.values()]
    return estimate(None if each is None else each.mean for each in means)


def groups(records: Iterable[Record]) -> list[Group]:
    """Records by data, model, split and OOD data, in the order they first occur.

    A cell that was run twice counts once, the later run, with what only the earlier one has
    measured. A method that occurs with several sets of options gets a row for each: `stf`,
    `stf #2`, ... Published numbers stand in all groups of a test part of their data; of two with
    one name the later counts.
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
        options = json.dumps([record.get("options"), _setup(record)], sort_keys=True)
        tasks.setdefault(key, record["task"])
        runs = cells.setdefault(key, {}).setdefault((record["method"], options), {})
        fold = record.get("fold")
        place = -1 if fold is None else fold, record["seed"]
        runs[place] = _joined(runs[place], record) if place in runs else record
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


def _setup(record: Record) -> dict[str, object]:
    """What decides the fit and its predictions; not what else was measured."""
    setup = record.get("setup") or {}
    return {name: each for name, each in setup.items() if name != "evaluate"}


def _joined(earlier: Record, later: Record) -> Record:
    """The later record, with metrics and curves of aspects that only the earlier one measured."""
    parts = {
        name: {**(earlier.get(name) or {}), **(later.get(name) or {})}
        for name in ("metrics", "curves")
    }
    return {**later, **parts}


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
