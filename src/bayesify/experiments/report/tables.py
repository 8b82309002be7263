"""Groups of runs as tables: the same cells for the terminal and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from bayesify.experiments.report.column import Column
from bayesify.experiments.report.columns import BRIEF, COST, column
from bayesify.experiments.report.groups import Estimate, Group, Published


@dataclass(frozen=True)
class Cell:
    """A value as shown, its standard error (empty for one run), and whether it is the best."""

    text: str
    error: str
    best: bool


@dataclass(frozen=True)
class Table:
    """Columns, and a row of cells for each label.

    Args:
        columns: Of all rows.
        rows: What was measured.
        published: What others published, with the marks of the footnotes in its labels.
        notes: Footnotes.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    published: tuple[tuple[str, tuple[Cell, ...]], ...] = ()
    notes: tuple[str, ...] = ()


def table(group: Group, names: list[str]) -> Table:
    """Means over folds and seeds of the numbers `names`, for every method of a group.

    The best value of a column is marked, with every value that reads the same; a column of one
    value, or without a better and worse, has no mark. Published numbers have none either.
    """
    cells = [_cells(column(name), [row.estimate(name) for row in group.rows]) for name in names]
    beside = [each for each in group.published if not each.values.keys().isdisjoint(names)]
    marks = _marks(beside)
    return Table(
        tuple(column(name) for name in names),
        tuple((row.label, tuple(each[i] for each in cells)) for i, row in enumerate(group.rows)),
        tuple(
            (f"{each.label} {marks[_origin(each)]}", _published_cells(each, names))
            for each in beside
        ),
        (*(f"{mark} {origin}" for origin, mark in marks.items()), *_unfinished(group)),
    )


def topic_table(group: Group, topic: str) -> Table:
    """The numbers of one topic of `columns.TOPICS`; without columns where none was measured."""
    return table(group, group.names(topic))


def terminal_tables(group: Group, width: int) -> list[RichTable]:
    """The most important numbers; the best are bold.

    One table where it fits into `width` characters, else one for each part of `columns.BRIEF`, each
    cut into as many as it takes. Only a single column may be wider than that.
    """
    present = {*group.metrics, *group.costs}
    parts = [[name for name in names if name in present] for names in BRIEF.values()]
    whole = _drawn(group, [name for part in parts for name in part], caption(group))
    if measure_width(whole) <= width:
        return [whole]
    pieces = [piece for part in parts for piece in _cut(group, part, width)]
    return [
        _drawn(group, piece, caption(group) if number == 0 else "")
        for number, piece in enumerate(pieces)
    ]


def measure_width(drawn: RichTable) -> int:
    """Characters that a table needs to show every cell whole."""
    console = Console(width=1000)
    return Measurement.get(console, console.options, drawn).maximum


def _cut(group: Group, names: Sequence[str], width: int) -> list[list[str]]:
    """Names in as few tables as fit, each filled before the next begins."""
    pieces: list[list[str]] = []
    for name in names:
        if pieces and measure_width(_drawn(group, [*pieces[-1], name], "")) <= width:
            pieces[-1].append(name)
        else:
            pieces.append([name])
    return pieces


def _drawn(group: Group, names: Sequence[str], title: str) -> RichTable:
    plain = table(group, list(names))
    drawn = RichTable(
        title=title or None,
        title_justify="left",
        caption=Text("\n".join(plain.notes)) if title and plain.notes else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("Method", no_wrap=True)
    for each in plain.columns:
        drawn.add_column(f"{each.title}{each.arrow}", justify="right", no_wrap=True)
    for label, cells in plain.rows:
        drawn.add_row(Text(label), *(_styled(cell) for cell in cells))
    drawn.add_section()
    for label, cells in plain.published:
        drawn.add_row(Text(label, style="italic"), *(_styled(cell) for cell in cells))
    return drawn


def caption(group: Group) -> str:
    """Where the numbers come from, in one line.

    >>> caption(Group("digits", "mlp", "test", "photos", "classification", ()))
    'digits, mlp · test split · OOD: photos · 0 seeds'
    """
    return f"{group.data}, {group.model} · {circumstances(group)}"


def circumstances(group: Group) -> str:
    """Split, OOD data, and the numbers of folds and seeds."""
    ood = [f"OOD: {group.ood}"] if group.ood else []
    folds = [_counted(len(group.folds), "fold")] if group.folds else []
    return " · ".join([f"{group.split} split", *ood, *folds, _counted(len(group.seeds), "seed")])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _origin(each: Published) -> str:
    spread = f" (±: {each.spread})" if each.spread else ""
    return f"From the literature, not measured here: {each.source}{spread}"


def _marks(beside: Sequence[Published]) -> dict[str, str]:
    """One, two, three asterisks: a mark for each origin."""
    origins = dict.fromkeys(_origin(each) for each in beside)
    return {origin: "*" * number for number, origin in enumerate(origins, start=1)}


def _published_cells(each: Published, names: Sequence[str]) -> tuple[Cell, ...]:
    values = [(column(name), *each.values.get(name, (None, None))) for name in names]
    return tuple(
        Cell(
            shown.published(value),
            shown.published(spread) if spread is not None else "",
            best=False,
        )
        for shown, value, spread in values
    )


def _unfinished(group: Group) -> list[str]:
    """What makes means incomparable: methods that have run on fewer folds and seeds than others."""
    most = max((len(row.runs) for row in group.rows), default=0)
    fewer = [f"{row.label} {len(row.runs)}" for row in group.rows if len(row.runs) < most]
    return (
        [f"Means of fewer runs than the {most} of the others: {', '.join(fewer)}"] if fewer else []
    )


def _cells(each: Column, estimates: list[Estimate | None]) -> list[Cell]:
    measured = [found.mean for found in estimates if found is not None]
    ranked = each.best is not None and len(measured) > 1
    best = each.text(min(measured, key=each.badness)) if ranked else None
    distinct = len({each.text(value) for value in measured}) > 1
    return [_cell(each, found, best if distinct else None) for found in estimates]


def _cell(each: Column, found: Estimate | None, best: str | None) -> Cell:
    if found is None:
        return Cell(each.text(None), "", best=False)
    text = each.text(found.mean)
    constant = each in COST.values() or each.kind in ("budget", "count")  # no estimate of anything
    shown = found.standard_error is not None and not constant
    error = each.text(found.standard_error) if shown else ""
    return Cell(text, error, best=text == best)


def _styled(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    if cell.error:
        text.append(f"±{cell.error}", style="dim not bold")
    return text
