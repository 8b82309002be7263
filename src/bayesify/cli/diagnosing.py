"""`bayesify diagnose`: which layer of a trained network do the data leave open?"""

import tempfile
from json import dumps
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import nn

from bayesify.cli import flags
from bayesify.cli.comparing import listed
from bayesify.cli.flags import HOW, OUTPUT, SEVERAL, flag
from bayesify.cli.saved import named_models, open_run
from bayesify.core.clones import clone
from bayesify.core.errors import OptionError
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.evaluation.diagnosis.open_layers import Diagnosis
from bayesify.evaluation.diagnosis.open_layers import diagnose as diagnosis_of
from bayesify.experiments.problems import usable_device
from bayesify.experiments.report.files import write_atomically
from bayesify.experiments.report.plots.diagnosis import diagnosis_plot
from bayesify.methods.members.map import MAP
from bayesify.posteriors.dropout import DropoutPosterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.weights.named import assign_


def diagnose(
    *,
    run: flags.Run,
    model: flags.OwnModel = None,
    starts: Annotated[int, flag("--starts", help="Retrainings of each layer.", panel=HOW)] = 4,
    epochs: Annotated[int, flag("--epochs", help="Of each retraining.", panel=HOW)] = 20,
    layers: Annotated[
        str | None,
        flag("--layers", help=f"Names of modules.{SEVERAL} [dim]default all[/]", panel=HOW),
    ] = None,
    seed: Annotated[int, flag("--seed", help="Of random starts and batches.", panel=HOW)] = 0,
    data_dir: str | None,
    device: str,
    out: Annotated[
        str | None,
        flag("--out", help="SVG to write. [dim]default RUN/diagnosis.svg[/]", panel=OUTPUT),
    ] = None,
    json: flags.AsJson = False,
) -> int:
    """Retrain each layer alone, from random starts: which one should be Bayesian?

    The one whose retrainings predict equally well with other weights. JSON goes beside the SVG.
    """
    method = MAP(epochs=epochs)
    posterior, notes = open_run(run, device=usable_device(device), named=named_models(model))
    plot = Path(out) if out else Path(run) / "diagnosis.svg"
    _check_writable(plot)
    network = _trained(posterior, run)
    splits = notes.splits(None, data_dir)
    split = "validation" if len(splits.validation) else "test"
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task(f"{run}: layers retrained", total=None)
        diagnosis = diagnosis_of(
            network,
            splits.train,
            validation=getattr(splits, split),
            layers=None if layers is None else listed(layers),
            starts=starts,
            method=method,
            likelihood=posterior.likelihood,
            seed=seed,
            on_fit=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    about = {"run": run, "data": splits.name, "model": notes.model, "split": split}
    about |= {"epochs": epochs, "seed": seed}
    found = about | diagnosis.to_json()
    numbers = plot.with_suffix(".json")
    write_atomically(plot, diagnosis_plot(found) + "\n")
    write_atomically(numbers, dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if json:
        print(dumps(found | {"plot": str(plot)}, allow_nan=False))
        return 0
    _show(diagnosis, f"{run}: {notes.model} on {splits.name}, judged on the {split} part")
    print(f"Plot: {plot}; all numbers: {numbers}")
    return 0


def _trained(posterior: WeightPosterior | DropoutPosterior, run: str) -> nn.Module:
    """The network at the posterior's point."""
    if isinstance(posterior, DropoutPosterior):
        posterior = posterior.without_dropout()
    q = posterior.q
    members = q.members if isinstance(q, MatrixNormal) else q.size(1)
    if members > 1:
        raise OptionError(
            f"{run} holds {members} networks, and their mean is none that was trained; expected "
            f"one, as of bayesify fit map."
        )
    model = clone(posterior.model).requires_grad_(True)
    assign_(model, posterior.point())
    return model


def _check_writable(plot: Path) -> None:
    """Raise `OptionError` unless the files can be written, before time is spent."""
    if plot.suffix != ".svg":
        raise OptionError(f"--out {plot}: expected the name of a file that ends in .svg.")
    if plot.is_dir():
        raise OptionError(f"--out {plot}: that is a folder; expected the name of a file.")
    try:
        with tempfile.TemporaryFile(dir=plot.parent):
            pass
    except OSError as error:
        raise OptionError(
            f"--out {plot}: cannot write to {plot.parent} ({error.strerror}); choose a folder "
            f"that exists and can be written to."
        ) from error


def _show(diagnosis: Diagnosis, heading: str) -> None:
    print(heading)
    print(diagnosis)
    if diagnosis.task == "regression":
        print("rmse and disagreement are in standard deviations of the training targets.")
