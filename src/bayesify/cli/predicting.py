"""`bayesify predict`: what a saved posterior says about new inputs."""

import csv
import math
import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bayesify.cli import flags
from bayesify.cli.flags import OUTPUT, flag
from bayesify.cli.saved import Notes, named_models, open_run
from bayesify.core.errors import OptionError
from bayesify.core.types import Named
from bayesify.data.loading import as_loader
from bayesify.evaluation.predictions import collect_unlabelled
from bayesify.experiments.problems import usable_device

Row = dict[str, Any]

SHOWN = 20
"""Rows on a terminal; files and pipes get all."""


def predict(
    *,
    run: flags.Run,
    inputs: Annotated[
        str,
        typer.Argument(
            help="An .npz file with x, a .csv file with the training columns, an image, or a "
            "folder of images.",
            metavar="INPUT",
        ),
    ],
    model: flags.OwnModel = None,
    out: Annotated[
        str | None,
        flag(
            "--out", help="CSV file to write. [dim]default print[/]", panel=OUTPUT, metavar="FILE"
        ),
    ] = None,
    num_samples: int,
    device: str,
    json: flags.AsJson = False,
) -> int:
    """Predict new inputs with a saved posterior, and say how sure it is of each."""
    posterior, notes = open_run(run, device=usable_device(device), named=named_models(model))
    names, x = notes.intake.read(inputs)
    loader = as_loader((x, torch.zeros(len(x))), batch_size=256, shuffle=False)
    values = collect_unlabelled(posterior, loader, num_samples=num_samples)
    rows = [
        {"input": name, **row}
        for name, row in zip(names, _ROWS[notes.task](values, notes), strict=True)
    ]
    if out is not None:
        _save(rows, Path(out))
    if json:
        for row in rows:
            print(dumps({k: None if v != v else v for k, v in row.items()}))
    elif out is not None:
        print(f"Wrote {len(rows)} predictions to {out}.")
    elif sys.stdout.isatty():
        _show(rows)
    else:
        _write(rows, sys.stdout)
    return 0


def _classes(values: Named, notes: Notes) -> list[Row]:
    probability, index = values["probs"].max(1)
    return [
        {
            "class": notes.class_names[best],
            "probability": p,
            "entropy": entropy,
            "mutual_information": information,
        }
        for best, p, entropy, information in zip(
            index.tolist(),
            probability.tolist(),
            values["entropy"].tolist(),
            values["mutual_information"].tolist(),
            strict=True,
        )
    ]


def _labels(values: Named, notes: Notes) -> list[Row]:
    return [dict(zip(notes.class_names, row, strict=True)) for row in values["probs"].tolist()]


def _numbers(values: Named, notes: Notes) -> list[Row]:
    mean, deviation = notes.in_target_units(values["mean"], values["variance"].sqrt())
    if mean.shape[1] == 1:
        pairs = zip(mean[:, 0].tolist(), deviation[:, 0].tolist(), strict=True)
        return [{"mean": m, "standard_deviation": s} for m, s in pairs]
    return [
        {f"mean_{i}": m for i, m in enumerate(means)}
        | {f"standard_deviation_{i}": s for i, s in enumerate(deviations)}
        for means, deviations in zip(mean.tolist(), deviation.tolist(), strict=True)
    ]


_ROWS: dict[str, Callable[[Named, Notes], list[Row]]] = {
    "classification": _classes,
    "multilabel": _labels,
    "regression": _numbers,
}


def _save(rows: list[Row], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as stream:
            _write(rows, stream)
    except OSError as error:
        raise OptionError(f"--out {path}: cannot be written ({error.strerror}).") from error


def _write(rows: list[Row], stream: TextIO) -> None:
    table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _short(value) for name, value in row.items()} for row in rows)


def _show(rows: list[Row]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("input", "class") else "right")
    for row in rows[:SHOWN]:
        table.add_row(*(_short(value) for value in row.values()))
    Console().print(table)
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN} more; --out FILE.csv writes all.")


def _short(value: Any) -> str:
    """Six significant digits of a number; text as it is."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return str(value)
