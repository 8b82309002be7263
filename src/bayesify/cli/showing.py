"""Tables of records on the terminal, and `bayesify report`."""

from collections.abc import Sequence
from json import dumps
from pathlib import Path

from rich.console import Console

from bayesify.core.errors import OptionError
from bayesify.experiments.report import records
from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.page import write
from bayesify.experiments.report.tables import terminal_tables

WIDTH = 110
"""Characters of a line where the output is no terminal."""


def show(found: Sequence[records.Record], *, stderr: bool = False) -> None:
    """Print a table for each group of records."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console = Console(stderr=stderr, width=WIDTH)
    for group in groups(found):
        console.print()
        for table in terminal_tables(group, console.width):
            console.print(table)


def report(*, paths: list[str], out: str | None, json: bool) -> int:
    """Write the page of files of results and show their tables; returns the exit code."""
    found = records.read_all(paths)
    if out is None and len(paths) > 1:
        raise OptionError(
            "several folders make one page: expected --out FILE to say where, as in "
            "--out report.html."
        )
    folder = Path(paths[0]) if Path(paths[0]).is_dir() else Path(paths[0]).parent
    page = write(found, out or folder / "report.html", title="bayesify report")
    if json:
        for record in found:
            print(dumps(record))
    show(found, stderr=json)
    told = Console(stderr=True)
    told.print(f"Pictures and all numbers: {page}", highlight=False, soft_wrap=True)
    return 0
