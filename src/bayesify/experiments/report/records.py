"""Reading `results.jsonl`: one finished run or published method a line, checked as it comes in."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from bayesify.core.errors import DataError

Record: TypeAlias = dict[str, Any]
"""One run: method, model, data, fold, seed, split, task, options, metrics, cost, curves, versions.

Or numbers that others published, under the name of the method in `literature`.
"""

REQUIRED = {
    "method": str,
    "model": str,
    "data": str,
    "seed": int,
    "split": str,
    "task": str,
    "metrics": dict,
}
"""Entries a run cannot do without, and their types."""

PUBLISHED = {"literature": str, "source": str, "data": str, "metrics": dict}
"""Entries that published numbers cannot do without."""


def read(path: str | Path) -> list[Record]:
    """All records of a file, in its order. Empty lines are skipped.

    Args:
        path: A `.jsonl` file, or a folder that holds `results.jsonl`.

    Raises:
        DataError: when the file is missing or empty, or a line is no record; it names the line.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.jsonl"
    if not path.is_file():
        fitted = (path.parent / "manifest.json").exists()  # a posterior's; reports need no torch
        make = f"evaluate {path.parent}" if fitted else f"compare --out {path.parent}"
        raise DataError(
            f"expected results at {path}, got no such file; run `bayesify {make}` first."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [
        _parse(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not records:
        raise DataError(f"expected at least one result in {path}, got an empty file.")
    return records


def read_all(paths: Iterable[str | Path]) -> list[Record]:
    """The records of several files or folders, joined in their order.

    Of two runs of the same cell (the same `cell` entry) the later one counts, in the place of the
    first; records without that entry are all kept.

    Args:
        paths: What `read` takes, at least one.

    Raises:
        DataError: no path was given, or one cannot be read.
    """
    found: dict[str, Record] = {}
    for path in paths:
        for record in read(path):
            found[str(record.get("cell") or f"record {len(found)}")] = record
    if not found:
        raise DataError("expected at least one file or folder of results, got none.")
    return list(found.values())


def check(record: Any, where: str) -> Record:
    """The record itself, or `DataError` saying what `where` lacks."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(record).__name__}.")
    required = PUBLISHED if is_published(record) else REQUIRED
    for name, kind in required.items():
        if not isinstance(record.get(name), kind):
            got = repr(record[name]) if name in record else "nothing"
            raise DataError(f"{where}: expected `{name}` to be a {kind.__name__}, got {got}.")
    if is_published(record):
        for name, each in record["metrics"].items():
            if not (isinstance(each, dict) and isinstance(each.get("value"), int | float)):
                raise DataError(f"{where}: expected `{name}` to hold a value, got {each!r}.")
    return record


def is_published(record: Record) -> bool:
    """Whether it holds numbers of others instead of a run."""
    return "literature" in record


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as reason:
        raise DataError(
            f"{where}: expected one JSON object, got broken JSON ({reason}); delete the line and "
            f"run its cell again."
        ) from reason
    return check(record, where)
