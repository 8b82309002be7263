"""`bayesify data`: the data sets known by name, and how to get those that are missing."""

from json import dumps

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bayesify.data import available


def data(*, data_dir: str | None, json: bool) -> int:
    """Print the list; returns the exit code."""
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
