"""What is there, shown: `bayesify report` of results, and `bayesify data` of data sets."""

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bayesify.cli import flags
from bayesify.cli.flags import OUTPUT, flag
from bayesify.core.errors import OptionError
from bayesify.data import available
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


def report(
    *,
    paths: Annotated[
        list[str],
        typer.Argument(help="Folders of results.jsonl, or such files.", metavar="PATH..."),
    ],
    out: Annotated[
        str | None,
        flag(
            "--out",
            "-o",
            help="Page to write. [dim]default report.html in the folder, where it is one[/]",
            panel=OUTPUT,
            metavar="FILE",
        ),
    ] = None,
    json: flags.AsJson = False,
) -> int:
    """Make a page of the results of bayesify compare and evaluate, and show their tables.

    Runs of several folders are joined; each table is also written as CSV and JSON beside the page.
    """
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


def data(*, data_dir: str | None, json: flags.AsJson = False) -> int:
    """List the data sets known by name: where they were found, or how to get them."""
    rows = available(data_dir)
    if json:
        for row in rows:
            print(dumps(row._asdict()))
        return 0
    table = Table(box=SIMPLE_HEAD)
    for heading in ("Name", "What it is", "", "Where, or how to get it"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        mark = "[green]found[/]" if row.found else "[yellow]missing[/]"
        table.add_row(row.name, row.about, mark, row.where)
    console = Console()
    console.print(table)
    console.print(
        "Your own: an .npz file (x_train, y_train, x_test, y_test), a .csv file with --target "
        "COLUMN, or a folder with a folder of images per class.",
        highlight=False,
    )
    return 0
