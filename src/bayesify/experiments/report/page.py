"""`report.html`: all tables and figures of a file of results on one self-contained page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesify.core.errors import DataError
from bayesify.experiments.report.column import Column
from bayesify.experiments.report.columns import TOPICS, column
from bayesify.experiments.report.figures import Figure, figures, pair_figure, pairs
from bayesify.experiments.report.files import FOLDER, stems, tables_to_files, write_atomically
from bayesify.experiments.report.groups import Group, Row, groups
from bayesify.experiments.report.paired import differences, paired_table
from bayesify.experiments.report.records import Record, check, is_published
from bayesify.experiments.report.style import PALETTE, Style, styles
from bayesify.experiments.report.tables import Table, circumstances, topic_table

DARK_PALETTE = (
    "#4ea5e3",
    "#ff8f4a",
    "#2fc49a",
    "#e6a3c9",
    "#f0b83a",
    "#86cdf5",
    "#a5abb5",
    "#c2639c",
)
"""The palette of the figures, lightened for a dark page."""


MANY = 4
"""With more figures than this, a section begins with a table of its contents."""


@dataclass(frozen=True)
class Part:
    """One topic of a section: a table and its figures.

    Args:
        anchor: Where links go to.
        title: Heading.
        table: None where there are figures only.
        figures: In order.
        file: The table as a file, without its ending, relative to the page; "" for none.
    """

    anchor: str
    title: str
    table: Table | None
    figures: tuple[Figure, ...] = ()
    file: str = ""


@dataclass(frozen=True)
class Section:
    """All that the page says about one group."""

    anchor: str
    group: Group
    caption: str
    parts: tuple[Part, ...]
    appendix: tuple[tuple[str, str, str], ...]
    command: str

    @property
    def contents(self) -> tuple[Part, ...]:
        """The parts, where there are many figures."""
        return self.parts if sum(len(part.figures) for part in self.parts) > MANY else ()


def write(records: Sequence[Record], path: str | Path, *, title: str = "bayesify report") -> Path:
    """Write the page for `records`, and its tables as files into a folder `tables` beside it.

    Files of these names are replaced in one step or not at all.

    Args:
        records: What `records.read` or `records.read_all` returns.
        path: The file to write; its folder is made.
        title: Heading of the page.

    Returns:
        The path written.
    """
    path = Path(path)
    page = render(records, title=title, files=True)
    tables_to_files(groups(records), path.parent)
    return write_atomically(path, page)


def render(
    records: Sequence[Record], *, title: str = "bayesify report", files: bool = False
) -> str:
    """The page as a string. The same records give the same page.

    Args:
        records: What `records.read` returns.
        title: Heading of the page.
        files: Whether it links to the files that `tables_to_files` writes beside it.
    """
    if not records:
        raise DataError("expected at least one result to report, got none.")
    for number, record in enumerate(records, start=1):
        check(record, f"record {number}")
    if not (found := groups(records)):
        raise DataError("expected at least one run to report, got published numbers only.")
    labels = list(dict.fromkeys(row.label for group in found for row in group.rows))
    drawn = styles(labels)
    sections = [
        _section(group, drawn, number, f"{FOLDER}/{stem}" if files else "")
        for number, (group, stem) in enumerate(zip(found, stems(found), strict=True), start=1)
    ]
    both_ways = [pair_figure(pair, drawn) for pair in pairs(found)]
    environment = Environment(
        loader=PackageLoader("bayesify", "experiments/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=sections,
        pairs=[figure for figure in both_ways if figure],
        runs=sum(not is_published(each) for each in records),
        methods=labels,
        definitions=_definitions(found),
        styles=drawn,
        palette=list(zip(PALETTE, DARK_PALETTE, strict=True)),
        provenance=_provenance(records),
    )


def command(group: Group) -> str:
    """The command lines that run the cells of a group again, one a line.

    Records may carry their own `command`; otherwise it is put together from the cells. A label
    such as `map+ts` belongs to the run of `map`.
    """
    runs = [run for row in group.rows for run in row.runs]
    if own := dict.fromkeys(str(run["command"]) for run in runs if run.get("command")):
        return "\n".join(own)
    methods = dict.fromkeys(run["method"].split("+")[0] for run in runs)
    ood = f" --ood {group.ood}" if group.ood else ""
    seeds = ",".join(map(str, group.seeds))
    folds = f" --folds {','.join(map(str, group.folds))}" if group.folds else ""
    return (
        f"bayesify compare --data {group.data}{ood} --model {group.model} "
        f"--methods {','.join(methods)} --seeds {seeds}{folds}"
    )


def _section(group: Group, drawn: dict[str, Style], number: int, stem: str) -> Section:
    anchor = f"section-{number}"
    return Section(
        anchor=anchor,
        group=group,
        caption=circumstances(group),
        parts=tuple(_parts(group, drawn, anchor, stem)),
        appendix=tuple((row.label, _places(row), _options(row)) for row in group.rows),
        command=command(group),
    )


def _parts(group: Group, drawn: dict[str, Style], anchor: str, stem: str) -> list[Part]:
    pictures = figures(group, drawn)
    made: list[Part] = []
    told: set[str] = set()
    for topic, (title, _) in TOPICS.items():
        table = topic_table(group, topic) if group.names(topic) else None
        if table is not None:
            fresh = tuple(note for note in table.notes if note[0] == "*" or note not in told)
            told |= {*table.notes}
            table = replace(table, notes=fresh)
        if table is not None or topic in pictures:
            file = f"{stem}-{topic}" if stem and table is not None else ""
            part = Part(f"{anchor}-{topic}", title, table, pictures.get(topic, ()), file)
            made.append(part)
        if topic == "quality" and (found := differences(group)) is not None:
            name, file = "differences", f"{stem}-differences" if stem else ""
            title = f"Differences to {found.reference} (paired over {_units(group)})"
            made.append(Part(f"{anchor}-{name}", title, paired_table(found), (), file))
    return made


def _units(group: Group) -> str:
    return "folds" if len(group.folds) > 1 else "seeds"


def _definitions(found: list[Group]) -> list[tuple[str, list[tuple[Column, str]]]]:
    """What the columns on the page mean, by topic."""
    made: list[tuple[str, list[tuple[Column, str]]]] = []
    for topic, (title, _) in TOPICS.items():
        names = dict.fromkeys(name for group in found for name in group.names(topic))
        told = [(column(name), name) for name in names if column(name).definition]
        if told:
            made.append((title, told))
    return made


def _options(row: Row) -> str:
    last = row.runs[-1]
    shown = {"options": last.get("options"), "setup": last.get("setup")}
    shown = shown if last.get("setup") else shown["options"]
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _places(row: Row) -> str:
    """The folds and seeds of a row's runs."""
    places = {"folds": row.folds, "seeds": row.seeds}
    return "; ".join(f"{name} {', '.join(map(str, each))}" for name, each in places.items() if each)


def _provenance(records: Sequence[Record]) -> list[tuple[str, str]]:
    """What the runs were made with; several values where the runs differ."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        entries: dict[str, Any] = {**(record.get("versions") or {})}
        entries["git revision"] = record.get("git_revision")
        for name, value in entries.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    facts = [(name, ", ".join(values)) for name, values in found.items()]
    finished = sorted(str(record["finished"]) for record in records if record.get("finished"))
    return [*facts, ("last run finished", finished[-1])] if finished else facts
