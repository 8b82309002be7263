"""What each number in a record is called, means, looks like, and whether more of it is better."""

import math
from collections.abc import Callable
from dataclasses import dataclass

MISSING = "–"  # noqa: RUF001
"""Shown for what was not measured or is not finite."""


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

        >>> METRICS["accuracy"].text(0.9712), COST["disk_bytes"].text(5300)
        ('97.1', '5.3 kB')
        """
        if value is None or not math.isfinite(value):
            return MISSING
        return FORMATS[self.kind](value)

    def published(self, value: float | None) -> str:
        """A number of others: with two digits, or those that it has, where no unit is involved.

        >>> METRICS["rmse"].published(2.9), METRICS["accuracy"].published(0.9712)
        ('2.90', '97.1')
        """
        if value is None or self.kind != "number":
            return self.text(value)
        return f"{value:.2f}" if value == round(value, 2) else f"{value:g}"

    def badness(self, value: float) -> float:
        """Sorts values from best (lowest) to worst.

        >>> METRICS["coverage90"].badness(0.9) < METRICS["coverage90"].badness(1.0)
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


MORE, LESS = math.inf, -math.inf

METRICS: dict[str, Column] = {
    "accuracy": Column(
        "Acc %", "percent", MORE, "share of examples whose most probable class is the true one"
    ),
    "exact_match": Column(
        "Exact %", "percent", MORE, "share of examples with every label on the right side of 0.5"
    ),
    "label_accuracy": Column(
        "Labels %", "percent", MORE, "share of labels on the right side of 0.5"
    ),
    "rmse": Column(
        "RMSE", "number", LESS, "root mean squared error of the mean, in the target's units"
    ),
    "nll": Column(
        "NLL",
        "number",
        LESS,
        "mean negative log of the averaged predictive at the truth, nats per example; "
        "in regression of its density in the target's units",
    ),
    "ece": Column(
        "ECE %",
        "percent",
        LESS,
        "mean gap between confidence and accuracy of the top label, over 15 equal-width bins",
    ),
    "label_ece": Column(
        "ECE %",
        "percent",
        LESS,
        "mean gap between probability and frequency of each label, over 15 equal-width bins",
    ),
    "brier": Column(
        "Brier", "number", LESS, "squared error of the probabilities, summed over classes"
    ),
    "label_brier": Column(
        "Brier", "number", LESS, "squared error of the probabilities, averaged over labels"
    ),
    "coverage90": Column(
        "Cov90 %",
        "percent",
        0.9,
        "share of targets inside the central 90 % interval (Gaussian with the same moments); "
        "90 is best",
    ),
    "sharpness": Column(
        "Spread", "number", None, "root mean predictive variance, in the target's units"
    ),
    "ood_auroc": Column(
        "AUROC %",
        "percent",
        MORE,
        "chance that a known-kind (ID) example looks more familiar than a foreign (OOD) one; "
        "the score is minus the entropy of the predictive (minus its variance in regression)",
    ),
    "ood_aupr": Column(
        "AUPR %", "percent", MORE, "average precision of the same ranking, ID as positive class"
    ),
    "ood_fpr95": Column(
        "FPR95 %",
        "percent",
        LESS,
        "share of OOD examples taken for ID when 95 % of ID are accepted",
    ),
}
"""Columns of `record["metrics"]`, in the order of the tables."""

COST: dict[str, Column] = {
    "trainable_parameters": Column(
        "Trained", "count", LESS, "numbers that the method's own training changes"
    ),
    "stored_parameters": Column("Stored", "count", LESS, "numbers that a saved posterior holds"),
    "disk_bytes": Column("Disk", "bytes", LESS, "size of the saved posterior"),
    "peak_memory_bytes": Column(
        "Memory",
        "bytes",
        None,
        "peak while fitting: of the accelerator's allocator, or on a CPU the growth of the process",
    ),
    "fit_seconds": Column("Fit", "seconds", LESS, "wall-clock time of the whole fit"),
    "seconds_per_epoch": Column("Epoch", "seconds", LESS, "wall-clock time of one epoch"),
    "milliseconds_per_prediction": Column(
        "Predict", "milliseconds", LESS, "time to predict one example, all weight samples"
    ),
    "num_samples": Column("Samples", "count", None, "weight samples per prediction"),
}
"""Columns of `record["cost"]`, in the order of the tables."""

BRIEF = (
    "accuracy",
    "exact_match",
    "rmse",
    "nll",
    "ece",
    "label_ece",
    "brier",
    "coverage90",
    "ood_auroc",
    "ood_fpr95",
    "trainable_parameters",
    "stored_parameters",
    "disk_bytes",
    "peak_memory_bytes",
    "fit_seconds",
    "seconds_per_epoch",
    "milliseconds_per_prediction",
)
"""What the terminal shows; the page has every number."""


def column(name: str) -> Column:
    """The column of a metric or a cost; a number nobody described keeps its own name."""
    return METRICS.get(name) or COST.get(name) or Column(name, "number", None, "")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    divisor, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    scaled = value / divisor
    digits = 0 if abs(scaled) >= 100 or scaled == int(scaled) else 1 if abs(scaled) >= 1 else 2
    return f"{scaled:.{digits}f} {unit}".strip()


def _count(value: float) -> str:
    return _scaled(value, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")))


def _bytes(value: float) -> str:
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def _duration(value: float) -> str:
    hours, minutes = 3600, 60
    if value >= hours:
        return f"{value / hours:.1f} h"
    if value >= 2 * minutes:
        return f"{value / minutes:.1f} min"
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _milliseconds(value: float) -> str:
    if value >= 100:
        return f"{value:.0f} ms"
    if value >= 0.1:
        return f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"
    return f"{1000 * value:.1f} µs"


FORMATS: dict[str, Callable[[float], str]] = {
    "percent": _percent,
    "number": _number,
    "count": _count,
    "bytes": _bytes,
    "seconds": _duration,
    "milliseconds": _milliseconds,
}
"""How values are written, by kind; a percent is stored as a share and shown times 100."""
