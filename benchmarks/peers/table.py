"""The records as markdown: for each data set the best peer beside ours by group, then all rows.

Means and standard errors over seeds. Times are CPU seconds of one thread, in units of those of MAP
in plain torch in the same run; memory in megabytes.
"""

import statistics
from typing import Any

from problems import EPOCHS
from roster import MAP, ROWS, Row

Line = dict[str, Any]
BASE = "plain_torch:map_"
HEAD = (
    "| | accuracy % | NLL | ECE % | AUROC % | fit, of MAP's | predict, of MAP's | MB | passes "
    "| rate | snag |"
)
NONE = "-"
SHORT = "| group | best peer | NLL | fit | predict | ours | NLL | fit | predict |"


def tables(lines: list[Line]) -> str:
    """All tables of the records."""
    parts = []
    for data in EPOCHS:
        found = {
            row: [e for e in lines if e["where"] == row.where and e["data"] == data] for row in ROWS
        }
        tests = {row: [e for e in each if e["stage"] == "test"] for row, each in found.items()}
        tests = {row: each for row, each in tests.items() if each}
        if tests:
            base = next((each for row, each in tests.items() if row.where == BASE), [])
            parts += [f"### {data}", _summary(tests, base), _details(tests, base, data)]
    return "\n\n".join(parts)


def _details(tests: dict[Row, list[Line]], base: list[Line], data: str) -> str:
    out, group = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)], ""
    for row, lines in tests.items():
        if row.group != group:
            group = row.group
            out.append(f"| *{group}* |" + " |" * (HEAD.count("|") - 2))
        out.append(_line(row, lines, base, EPOCHS[data]))
    return "\n".join(out)


def _line(row: Row, lines: list[Line], base: list[Line], epochs: int) -> str:
    good = [each for each in lines if "error" not in each]
    passes = f"{row.networks * epochs + row.more}" + (f" ({row.budget})" if row.budget else "")
    if not good:
        return (
            f"| {row.title} | {_plain(lines[0]['error'])} |"
            + " |" * 6
            + f" {passes} | | {row.snag} |"
        )
    snag = row.snag
    if len(good) < len(lines):
        failed = next(each["error"] for each in lines if "error" in each)
        snag = f"{len(lines) - len(good)} of {len(lines)} failed: {_plain(failed)}; {snag}"
    cells = [
        _spread(good, "accuracy", 100, 1),
        _spread(good, "nll", 1, 3),
        _spread(good, "ece", 100, 1),
        _spread(good, "auroc", 100, 1),
        _ratio(good, base, "fit_cpu_seconds"),
        _ratio(good, base, "predict_ms"),
        f"{_mean(good, 'peak_bytes') / 1e6:.0f}",
        passes,
        f"{good[0]['lr']:g}",
        snag,
    ]
    return f"| {row.title} | " + " | ".join(cells) + " |"


def _summary(tests: dict[Row, list[Line]], base: list[Line]) -> str:
    """The best peer of each group by NLL next to the best of ours."""
    out = [SHORT, "|" + "---|" * (SHORT.count("|") - 1)]
    good = {r: [e for e in ls if "error" not in e] for r, ls in tests.items()}
    good = {row: lines for row, lines in good.items() if lines}
    for group in dict.fromkeys(row.group for row in good):
        cells = []
        for ours in (False, True):
            rows = [r for r in good if r.group == group and r.is_ours == ours]
            if group == MAP:
                rows = [row for row in rows if not row.snag]  # temperature scaling stands apart
            if not rows:
                cells += [NONE] * 4
                continue
            best = min(rows, key=lambda row: _mean(good[row], "nll"))
            title = best.title.replace("**bayesify** ", "")
            times = [_ratio(good[best], base, each) for each in ("fit_cpu_seconds", "predict_ms")]
            cells += [title, _spread(good[best], "nll", 1, 3), *times]
        out.append(f"| {group} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def _mean(lines: list[Line], name: str) -> float:
    return statistics.mean(each[name] for each in lines)


def _spread(lines: list[Line], name: str, factor: float, digits: int) -> str:
    values = [factor * each[name] for each in lines]
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def _ratio(lines: list[Line], base: list[Line], name: str) -> str:
    if not base:
        return NONE
    ratio = _mean(lines, name) / _mean(base, name)
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def _plain(error: str) -> str:
    return error.replace("|", "/").replace("\n", " ")[:90]
