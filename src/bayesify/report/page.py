"""`report.html`: all tables and figures of a file of results on one self-contained page."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bayesify.errors import DataError
from bayesify.report.columns import Column, column
from bayesify.report.groups import Group, Row, groups
from bayesify.report.plots import cost_against_quality, reliability_diagrams, roc_curves
from bayesify.report.records import Record, check, is_published
from bayesify.report.style import GRID, INK, MUTED, PALETTE, PAPER, Style, styles
from bayesify.report.tables import Table, circumstances, cost_table, quality_table

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


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading and the sentence under it."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    """All that the page says about one group."""

    anchor: str
    group: Group
    caption: str
    quality: Table
    cost: Table
    figures: tuple[Figure, ...]
    appendix: tuple[tuple[str, str, str], ...]
    command: str


def write(records: Sequence[Record], path: str | Path, *, title: str = "bayesify report") -> Path:
    """Write the page for `records`; a page of that name is replaced in one step or not at all.

    Args:
        records: What `records.read` returns.
        path: The file to write; its folder is made.
        title: Heading of the page.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(render(records, title=title), encoding="utf-8")
    os.replace(draft, path)
    return path


def render(records: Sequence[Record], *, title: str = "bayesify report") -> str:
    """The page as a string. The same records give the same page."""
    if not records:
        raise DataError("expected at least one result to report, got none.")
    for number, record in enumerate(records, start=1):
        check(record, f"record {number}")
    if not (found := groups(records)):
        raise DataError("expected at least one run to report, got published numbers only.")
    labels = list(dict.fromkeys(row.label for group in found for row in group.rows))
    drawn = styles(labels)
    sections = [_section(group, drawn, number) for number, group in enumerate(found, start=1)]
    environment = Environment(
        loader=PackageLoader("bayesify", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=sections,
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


def _section(group: Group, drawn: dict[str, Style], number: int) -> Section:
    return Section(
        anchor=f"section-{number}",
        group=group,
        caption=circumstances(group),
        quality=quality_table(group),
        cost=cost_table(group),
        figures=_figures(group, drawn),
        appendix=tuple((row.label, _places(row), _options(row)) for row in group.rows),
        command=command(group),
    )


def _figures(group: Group, drawn: dict[str, Style]) -> tuple[Figure, ...]:
    made = [
        (
            "Reliability",
            reliability_diagrams(group, drawn),
            "Bars: share of right predictions at each confidence. On the dashed line a model is "
            "right as often as it says; bars below it mean over-confidence. Underneath: how many "
            "predictions have that confidence.",
        ),
        (
            "Recognising foreign data",
            roc_curves(group, drawn),
            f"Telling {group.data} (ID) from {group.ood} (OOD) by the uncertainty of the "
            "predictive. The nearer the upper left corner, the better.",
        ),
        (
            "Quality and its price",
            cost_against_quality(group, drawn),
            "Down and to the left is better and cheaper. Bars are standard errors.",
        ),
    ]
    return tuple(Figure(title, Markup(_themed(svg)), text) for title, svg, text in made if svg)


def _themed(svg: str) -> str:
    """Colours by name instead of by value, so that the page's light or dark scheme decides."""
    named = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper"}
    named |= {color: f"c{i}" for i, color in enumerate(PALETTE)}
    for color, name in named.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def _definitions(found: list[Group]) -> list[tuple[Column, str]]:
    names = dict.fromkeys(
        name
        for group in found
        for name in (*group.metrics, *group.costs)
        if column(name).definition
    )
    return [(column(name), name) for name in names if column(name).definition]


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
