"""Differences between methods, paired: two runs with the same fold and seed saw the same data.

    d_i = x_i(method) - x_i(reference),    i over the common (fold, seed),
    mean d +- standard error of the d_i

What a fold or a seed does to both methods alike cancels, so differences are known better than the
two means. Seeds are averaged within a fold first where there are several folds, as everywhere here.
A difference is marked where a t-test of pairs would find it at 5 %: beyond Student's quantile with
n - 1 degrees of freedom, 4.30 standard errors for 3 pairs, 2.78 for 5, 2.09 for 20.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bayesify.experiments.report.columns import column
from bayesify.experiments.report.groups import Estimate, Group, Row, over_folds
from bayesify.experiments.report.records import Record
from bayesify.experiments.report.tables import Cell, Table

PAIRED = (
    *("nll", "accuracy", "rmse", "crps", "ece", "ood_auroc"),
    *("pgd_accuracy", "corrupted_nll", "membership_auc"),
)
"""The numbers compared, where they were measured."""

FEWEST = 3
"""Pairs that are needed before any difference is pointed out."""


@dataclass(frozen=True)
class Difference:
    """A mean difference to the reference, over n folds, or over n seeds of one.

    Args:
        estimate: Mean difference and its standard error.
        marked: Whether it exceeds `quantile(n)` standard errors, with at least `FEWEST` pairs.
    """

    estimate: Estimate
    marked: bool


@dataclass(frozen=True)
class Differences:
    """All methods of a group against one of them.

    Args:
        reference: Label of that one.
        names: The numbers compared.
        rows: By label: a difference for each of `names`, None where it was not measured.
    """

    reference: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Difference | None, ...]], ...]


def reference(group: Group) -> Row:
    """What the others are compared to: the row called "map", else the first."""
    return next((row for row in group.rows if row.label == "map"), group.rows[0])


def differences(group: Group) -> Differences | None:
    """Every method that shares at least two runs with the reference, less the reference.

    Returns:
        None where no method shares two runs with it or no number of `PAIRED` was measured.
    """
    base = reference(group)
    others = [row for row in group.rows if row is not base and len(_pairs(row, base)) > 1]
    found = [(row.label, [_difference(row, base, name) for name in PAIRED]) for row in others]
    kept = [i for i in range(len(PAIRED)) if any(each[i] for _, each in found)]
    if not kept:
        return None
    return Differences(
        base.label,
        tuple(PAIRED[i] for i in kept),
        tuple((label, tuple(each[i] for i in kept)) for label, each in found),
    )


def paired_table(found: Differences) -> Table:
    """The differences as a table; what is marked there is no more than what its note says."""
    return Table(
        tuple(column(name) for name in found.names),
        tuple(
            (label, tuple(_cell(*pair) for pair in zip(found.names, each, strict=True)))
            for label, each in found.rows
        ),
        notes=(_note(found),),
    )


def _note(found: Differences) -> str:
    pairs = sorted({each.estimate.n for _, row in found.rows for each in row if each})
    told = f"Less {found.reference}, over {' or '.join(map(str, pairs))} pairs. "
    if max(pairs) < FEWEST:
        return f"{told}None is marked: that takes {FEWEST} pairs."
    told_apart = ", ".join(f"{quantile(n):.2f} for {n}" for n in pairs if n >= FEWEST)
    return (
        f"{told}Marked (bold): the mean difference exceeds its standard error times Student's "
        f"quantile ({told_apart} pairs), as 5 % would do by chance where there is no difference."
    )


def quantile(n: int) -> float:
    """How many standard errors the mean of `n` normal differences of mean 0 exceeds in 5 %.

    Example:
        >>> round(quantile(3), 2), round(quantile(20), 2)
        (4.3, 2.09)
    """
    from scipy.special import stdtrit  # takes a while to load

    return float(stdtrit(n - 1, 0.975))


def _cell(name: str, found: Difference | None) -> Cell:
    shown = column(name)
    if found is None:
        return Cell(shown.text(None), "", best=False)
    error = found.estimate.standard_error
    return Cell(
        shown.difference(found.estimate.mean),
        "" if error is None else shown.text(error),
        best=found.marked,
    )


def _difference(row: Row, base: Row, name: str) -> Difference | None:
    pairs = _pairs(row, base)
    found = over_folds((ours.get("fold"), _less(ours, theirs, name)) for ours, theirs in pairs)
    if found is None:
        return None
    error = found.standard_error
    if error is None or found.n < FEWEST:
        return Difference(found, marked=False)
    return Difference(found, marked=abs(found.mean) > max(quantile(found.n) * error, 1e-12))


def _less(ours: Record, theirs: Record, name: str) -> float | None:
    values = ours["metrics"].get(name), theirs["metrics"].get(name)
    return None if values[0] is None or values[1] is None else values[0] - values[1]


def _pairs(row: Row, base: Row) -> Sequence[tuple[Record, Record]]:
    """The runs of two rows with the same fold and seed."""
    other = {(run.get("fold"), run["seed"]): run for run in base.runs}
    places = [(run, other.get((run.get("fold"), run["seed"]))) for run in row.runs]
    return [(ours, theirs) for ours, theirs in places if theirs is not None]
