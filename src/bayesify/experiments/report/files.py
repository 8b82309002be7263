"""The tables as files beside the page: CSV for spreadsheets, JSON for programs, numbers unrounded.

One line of a CSV, and one entry of `values` in a JSON, is one number of one method:

    method, name, mean, standard_error, n

where n counts the folds, or the seeds where there is one fold; with n = 1 a standard error is one
within that run, if it was measured. Fields are empty (null in JSON) where a number was not
measured in every run or is not finite.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayesify.experiments.report.columns import TOPICS
from bayesify.experiments.report.groups import Estimate, Group
from bayesify.experiments.report.paired import Differences, differences

FOLDER = "tables"
"""Beside the page."""

Values = list[dict[str, Any]]


def write_atomically(path: Path, text: str) -> Path:
    """Replace a file in one step or not at all; its folder is made. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def tables_to_files(groups: Sequence[Group], folder: str | Path) -> list[Path]:
    """Write each table of each group to `folder`/tables, as CSV and as JSON.

    Files are called by data, model and topic, such as `digits-mlp-quality.csv`; the paired
    differences are the topic `differences`. Files of the same name are replaced, others stay.

    Args:
        groups: What `groups.groups` returns.
        folder: Where the page stands.

    Returns:
        The files written.
    """
    written: list[Path] = []
    for group, stem in zip(groups, stems(groups), strict=True):
        for topic, values in _tables(group).items():
            path = Path(folder) / FOLDER / f"{stem}-{topic}"
            facts = {"data": group.data, "model": group.model, "split": group.split}
            facts |= {"ood": group.ood, "task": group.task, "table": topic, "values": values}
            if (published := _published(group, topic)) and topic != "differences":
                facts["published"] = published
            told = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            written.append(write_atomically(path.with_name(path.name + ".csv"), _csv(values)))
            written.append(write_atomically(path.with_name(path.name + ".json"), told))
    return written


def stems(groups: Sequence[Group]) -> list[str]:
    """How the files of each group begin: data and model, and what else it takes to differ.

    >>> shown = Group("digits", "mlp", "test", "photos", "classification", ())
    >>> stems([shown]), stems([shown, Group("digits", "mlp", "test", None, "classification", ())])
    (['digits-mlp'], ['digits-mlp-test-photos', 'digits-mlp-test'])
    """
    short = [_slug(group.data, group.model) for group in groups]
    seen = Counter(short)
    made = [
        stem if seen[stem] == 1 else _slug(group.data, group.model, group.split, group.ood)
        for stem, group in zip(short, groups, strict=True)
    ]
    again: Counter[str] = Counter()
    for place, stem in enumerate(made):
        again[stem] += 1
        if again[stem] > 1:
            made[place] = f"{stem}-{again[stem]}"
    return made


def topics_of(group: Group) -> list[str]:
    """The topics that a group has numbers for, in the page's order."""
    return [topic for topic in TOPICS if group.names(topic)]


def _tables(group: Group) -> dict[str, Values]:
    tables = {topic: _measured(group, group.names(topic)) for topic in topics_of(group)}
    found = differences(group)
    return tables if found is None else {**tables, "differences": _compared(found)}


def _measured(group: Group, names: list[str]) -> Values:
    return [
        {"method": row.label, "name": name, **_numbers(row.estimate(name))}
        for row in group.rows
        for name in names
    ]


def _compared(found: Differences) -> Values:
    return [
        {
            "method": label,
            "reference": found.reference,
            "name": name,
            **_numbers(None if each is None else each.estimate),
            "marked": bool(each and each.marked),
        }
        for label, row in found.rows
        for name, each in zip(found.names, row, strict=True)
    ]


def _numbers(found: Estimate | None) -> dict[str, Any]:
    if found is None:
        return {"mean": None, "standard_error": None, "n": None}
    return {"mean": found.mean, "standard_error": found.standard_error, "n": found.n}


def _published(group: Group, topic: str) -> Values:
    names = group.names(topic)
    return [
        {
            "method": each.label,
            "name": name,
            "value": each.values[name][0],
            "spread": each.values[name][1],
            "spread_is": each.spread,
            "source": each.source,
        }
        for each in group.published
        for name in names
        if name in each.values
    ]


def _csv(values: Values) -> str:
    made = io.StringIO()
    writer = csv.DictWriter(made, fieldnames=list(values[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return made.getvalue()


def _slug(*parts: str | None) -> str:
    """Letters, digits and single hyphens, for names of files and for links."""
    told = "-".join(part for part in parts if part)
    return re.sub(r"[^A-Za-z0-9]+", "-", told).strip("-")[:120] or "data"
