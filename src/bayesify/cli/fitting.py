"""`bayesify fit`: fit one posterior, save it with all that is needed to use it."""

import inspect
import os
import tempfile
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bayesify import data, models
from bayesify.cli import flags
from bayesify.cli.flags import DATA, HOW, MODEL, OUTPUT, assignments, flag
from bayesify.core.errors import OptionError
from bayesify.core.fields import fields_of, method_of
from bayesify.core.files import recover
from bayesify.core.options import to_json
from bayesify.experiments.choices import make
from bayesify.experiments.problems import check_certifiable, usable_device
from bayesify.experiments.results import set_aside
from bayesify.likelihoods import LIKELIHOOD_OF_TASK
from bayesify.methods import METHODS
from bayesify.posteriors.persistence import is_posterior, save
from bayesify.training.fit import fit as fit_posterior
from bayesify.training.progress import ProgressBar

SWITCHES = ("-h", "--help", "--augment", "--overwrite", "--json", "--print-config", "--debug")
"""Flags without a value."""


def fit(
    *,
    method: Annotated[
        str | None,
        typer.Argument(help="What to fit, as in bayesify fit stf.", metavar="METHOD"),
    ] = None,
    method_flag: Annotated[str | None, typer.Option("--method", hidden=True)] = None,
    source: Annotated[str, flag("--data", help=flags.SOURCES_HELP, panel=DATA)],
    out: Annotated[
        str, flag("--out", help="Folder to save the posterior in.", panel=OUTPUT, metavar="DIR")
    ],
    model: Annotated[str, flag("--model", help=flags.MODELS_HELP, panel=MODEL)] = "mlp",
    seed: Annotated[
        int, flag("--seed", help="Of the initial weights and of the fit.", panel=HOW)
    ] = 0,
    set: Annotated[
        list[str] | None,
        flag(
            "--set",
            help="An option of the method inside, as in pretrain.epochs=20; may be repeated.",
            panel=HOW,
            metavar="OPTION=VALUE",
        ),
    ] = None,
    fold: Annotated[
        int | None,
        flag("--fold", help="Which test part, of an .npz file that has several.", panel=DATA),
    ] = None,
    weights: str | None,
    batch_size: int,
    device: str,
    data_dir: str | None,
    target: str | None,
    task: str | None,
    image_size: int | None,
    split_seed: int,
    validation_share: float,
    augment: bool,
    overwrite: flags.Overwrite = False,
    json: flags.AsJson = False,
    print_config: flags.PrintConfig = False,
    **options: Any,
) -> int:
    """Fit one method to one data set and save the posterior, ready for evaluate and predict."""
    if method and method_flag and method != method_flag:
        raise OptionError(
            f"expected one method, got {method} and --method {method_flag}; leave one out."
        )
    method = method or method_flag or ""
    chosen = make(method, options | assignments(set or []))
    check_certifiable(chosen, weights)
    reading = {
        "data_dir": data_dir,
        "target": target,
        "task": task,
        "fold": fold,
        "image_size": image_size,
        "seed": split_seed,
        "validation_share": validation_share,
    }
    fitting = {"seed": seed, "batch_size": batch_size, "device": usable_device(device)}
    config = {
        "method": method,
        "options": to_json(chosen),
        "model": {"name": model, "weights": weights},
        "data": {"source": source, "augment": augment, **reading},
        **fitting,
        "out": out,
    }
    if print_config:
        print(dumps(config, indent=2))
        return 0
    from bayesify.cli.saved import Notes, own  # these load what --help need not wait for
    from bayesify.evaluation.evaluate import evaluate

    check_out(Path(out), overwrite=overwrite)
    splits = data.splits(source, **reading)
    fitted = {"batch_size": fitting["batch_size"], "weights": weights, "augment": augment}
    notes = Notes.of(model, splits, source, reading, fitted)
    net = models.build(model, splits.input_shape, splits.num_outputs, seed=seed)
    if weights is not None:
        models.load_weights(net, weights)
    posterior = fit_posterior(
        net,
        (data.augmented(splits) if augment else splits).train,
        chosen,
        validation=splits.validation if len(splits.validation) else None,
        likelihood=LIKELIHOOD_OF_TASK[splits.task],
        callbacks=[ProgressBar()],
        **fitting,
    )
    judged = None
    if len(splits.validation):
        judged = evaluate(posterior, splits.validation, target_scale=splits.target_scale)
    saved = save(posterior, out, overwrite=overwrite, notes=notes.to_json())
    aside = set_aside(saved)
    record = posterior.record
    seconds, start = (record.seconds, record.start) if record else (None, None)
    if json:
        metrics = None if judged is None else judged.to_json()["metrics"]
        print(dumps({**config, "seconds": seconds, "start": start, "validation": metrics}))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"Fitted {method} to {source} in {seconds:.1f} s.")
    if start and start["said"]:
        console.print(start["said"], markup=False)
    if counts := posterior.tally():
        console.print(", ".join(f"{count:,} {name}" for name, count in counts.items()) + ".")
    if judged is not None:
        console.print(f"On the validation part:\n{judged}", markup=False)
    if aside:
        console.print(f"What was found about the posterior before is now in {aside}.")
    console.print(f"Saved in {saved}. Next: [bold]bayesify evaluate {saved}{own(model)}[/]")
    return 0


def made(arguments: list[str]) -> Callable[..., int]:
    """The command with the flags of the method that its arguments name, if they name one.

    Raises:
        OptionError: no method is named, or an unknown one.
    """
    name = _method_in(arguments)
    if name is None and not {"-h", "--help"} & {*arguments}:
        raise OptionError(
            f"expected METHOD, one of {', '.join(METHODS)}, got none; name it first, as in "
            f"bayesify fit stf --data digits --out runs/a."
        )
    if name is None:
        command = flags.with_flags(fit)
        lines = "\n".join(f"{each:20}{_about(kind)}" for each, kind in METHODS.items())
        command.__doc__ = (
            f"{fit.__doc__}\n\nA method's own options: [bold]bayesify fit METHOD --help[/]."
            f"\n\n\b\n{lines}"
        )
        return command
    command = flags.with_flags(fit, fields_of(method_of(name)), f"{flags.OF}{name}")
    command.example = f"bayesify fit {name} --data digits --out runs/a"  # pyright: ignore[reportFunctionMemberAccess]
    command.__doc__ = (
        f"{name}: {_about(METHODS[name])}\n\n"
        f"The flags of every fit, such as --data: [bold]bayesify fit --help[/]."
    )
    return command


MADE = {"fit": made}


def _about(kind: type) -> str:
    """The first paragraph of what a class says of itself."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _method_in(arguments: list[str]) -> str | None:
    """What --method says, or the first word that is no flag and no flag's value."""
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            return word
        if name == "--method":
            return value if equals else next(words, None)
        if not equals and name not in SWITCHES:
            next(words, None)
    return None


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise `OptionError` unless a new folder `out` can be made, before time is spent on a fit."""
    recover(out)
    if os.path.lexists(out) and not overwrite:
        raise OptionError(
            f"--out {out} exists already; choose another name, or pass --overwrite to replace it."
        )
    if out.exists() and not is_posterior(out):
        raise OptionError(f"--out {out} exists and is no saved posterior; choose another name.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OptionError(
            f"--out {out}: cannot write to {out.parent} ({error.strerror}); choose another folder."
        ) from error
