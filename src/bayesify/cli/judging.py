"""`bayesify evaluate`: judge a saved posterior on held-out data; the result is kept beside it."""

import shlex
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from bayesify import data
from bayesify.cli import flags
from bayesify.cli.comparing import listed, settings_of
from bayesify.cli.flags import DATA, JUDGE, flag
from bayesify.cli.saved import Notes, named_models, open_run
from bayesify.core.errors import OptionError
from bayesify.evaluation.evaluate import Evaluation
from bayesify.experiments.aspects import Aspects
from bayesify.experiments.cell import digest
from bayesify.experiments.judging import Judge
from bayesify.experiments.measure import cost
from bayesify.experiments.problems import usable_device
from bayesify.experiments.results import Results
from bayesify.methods import METHODS
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.persistence import read_manifest
from bayesify.training.fit import versions
from bayesify.training.progress import BatchCounter

SPLITS = ("test", "validation", "train")


def evaluate(
    *,
    run: flags.Run,
    model: flags.OwnModel = None,
    source: Annotated[
        str | None,
        flag(
            "--data",
            help="Other data of the same kind. [dim]default those of the fit[/]",
            panel=DATA,
        ),
    ] = None,
    split: Annotated[
        str, flag("--split", help="Part to judge on: test, validation or train.", panel=JUDGE)
    ] = "test",
    evaluate: flags.Evaluate = None,
    gradient_samples: flags.GradientSamples = None,
    set: Annotated[
        list[str] | None,
        flag(
            "--set",
            help="An option of an aspect, as in attacks.eps=0.1,0.3; may be repeated.",
            panel=JUDGE,
            metavar="ASPECT.OPTION=VALUE",
        ),
    ] = None,
    transfer_from: Annotated[
        str | None,
        flag(
            "--transfer-from",
            help="Another saved posterior, such as MAP's, whose adversarial inputs are tried too.",
            panel=JUDGE,
            metavar="RUN",
        ),
    ] = None,
    ood: str | None,
    num_samples: int,
    data_dir: str | None,
    device: str,
    json: flags.AsJson = False,
    arguments: list[str],
) -> int:
    """Judge a saved posterior: accuracy, calibration, and how well it knows foreign data.

    With --evaluate all also under attack, under corruption, for what it gives away of its training
    data, and for what can be guaranteed. The result is kept in RUN/results.jsonl for the report.
    """
    if split not in SPLITS:
        raise OptionError(f"--split {split}: expected one of {', '.join(SPLITS)}.")
    if ood == "each-other":
        raise OptionError("--ood each-other: expected one data set, none or auto; name it.")
    aspects = _aspects(evaluate, gradient_samples, set or [])
    usable = usable_device(device)
    if "membership" in aspects and (split == "train" or source is not None):
        raise OptionError(
            "--evaluate membership tells the training data of the fit from others of the same "
            "kind: expected neither --split train nor --data."
        )
    named = named_models(model)
    posterior, notes = open_run(run, device=usable, named=named)
    splits = notes.splits(source, data_dir)
    held_out = getattr(splits, split)
    if not len(held_out):
        raise OptionError(
            f"--split {split}: that part is empty, since {run} was fitted with "
            f"--validation-share 0; choose test."
        )
    foreign = ("photos" if splits.is_image else None) if ood == "auto" else ood
    other = (
        None if transfer_from is None else open_run(transfer_from, device=usable, named=named)[0]
    )
    told, counter = Console(stderr=True, soft_wrap=True, highlight=False), BatchCounter(run)
    judge = Judge(
        aspects,
        splits,
        held_out,
        None if foreign is None else data.ood(foreign, like=splits, data_dir=data_dir),
        num_samples,
        surrogate=lambda: other,
        tell=told.print,
        on_batch=counter,
    )
    try:
        result = judge(posterior)
    finally:
        counter.close()
    described = {"data": splits.name, "split": split, "ood": foreign or "none"}
    record = {
        **_record(posterior, notes, result, aspects, num_samples),
        **described,
        "ood": foreign,
        "command": shlex.join(["bayesify", *arguments]),
    }
    record["cost"] = cost(posterior, held_out[[0]][0], Path(run), num_samples=num_samples)
    place = ("options", "model", "fold", "seed", "setup", *described)
    contents = [_contents(run), None if transfer_from is None else _contents(transfer_from)]
    record["cell"] = digest([{name: record[name] for name in place}, contents])
    kept = _keep(run, record, told)
    if json:
        print(dumps({"run": run, **described, **result.to_json()}))
        return 0
    against = "" if foreign is None else f", against {foreign}"
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{run} on {splits.name}, {split} part{against}")
    console.print(str(result), markup=False)
    if kept:
        console.print(f"Kept in {kept}. Pictures of several: [bold]bayesify report {run} ...[/]")
    return 0


def _aspects(asked: str | None, gradient_samples: int | None, texts: list[str]) -> Aspects:
    of_methods, settings = settings_of(texts, gradient_samples)
    if of_methods:
        raise OptionError(
            f"--set {next(iter(of_methods))}: a saved posterior has the options of its fit; "
            f"expected options of what is measured, such as attacks.steps=20."
        )
    chosen = Aspects().changed(listed(asked or ""), settings)
    if "shadows" in chosen:
        raise OptionError(
            "--evaluate shadows fits many posteriors like this one; use `bayesify compare`."
        )
    return chosen


def _record(
    posterior: Posterior, notes: Notes, result: Evaluation, aspects: Aspects, samples: int
) -> dict[str, Any]:
    """As `bayesify compare` keeps it."""
    record = posterior.record
    options = record.options if record else {}
    names = {kind.__name__: name for name, kind in METHODS.items()}
    setup: dict[str, Any] = {"num_samples": samples, "evaluate": aspects.to_json(), **notes.fitted}
    return {
        "method": names.get(options.get("kind", ""), "posterior"),
        "model": notes.model,
        "fold": notes.data.get("fold"),
        "seed": record.seed if record else 0,
        "task": notes.task,
        "options": options,
        "setup": setup,
        **result.to_json(),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _contents(run: str) -> str:
    """A digest of the posterior itself."""
    manifest = read_manifest(Path(run))
    return digest([manifest["base_sha256"], manifest["files"]])


def _keep(run: str, record: dict[str, Any], told: Console) -> Path | None:
    """Beside the posterior, where that can be written to."""
    try:
        results = Results(run)
    except OptionError as error:
        told.print(f"Not kept: {error}", markup=False)
        return None
    results.append(record)
    return results.file
