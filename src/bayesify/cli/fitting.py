"""`bayesify fit`: fit one posterior, save it with all that is needed to use it."""

import os
import tempfile
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console

from bayesify import data, models
from bayesify.cli.saved import Notes, own
from bayesify.cli.settings import assignments
from bayesify.core.errors import OptionError
from bayesify.core.files import recover
from bayesify.core.options import to_json
from bayesify.data.examples import VALIDATION_SHARE
from bayesify.evaluation.evaluate import evaluate
from bayesify.experiments.choices import make
from bayesify.experiments.problems import check_certifiable, usable_device
from bayesify.experiments.results import set_aside
from bayesify.likelihoods import LIKELIHOOD_OF_TASK
from bayesify.posteriors.persistence import is_posterior, save
from bayesify.training.fit import fit as fit_posterior
from bayesify.training.progress import ProgressBar


def fit(
    *,
    method: str,
    model: str,
    source: str,
    out: str,
    seed: int,
    set: list[str] | None,
    weights: str | None,
    augment: bool | None,
    batch_size: int | None,
    device: str | None,
    split_seed: int | None,
    validation_share: float | None,
    overwrite: bool,
    json: bool,
    print_config: bool,
    data_dir: str | None,
    target: str | None,
    task: str | None,
    fold: int | None,
    image_size: int | None,
    **options: Any,
) -> int:
    """Fit and save; returns the exit code. Arguments are the command's flags."""
    given = {name: value for name, value in options.items() if value is not None}
    chosen = make(method, given | assignments(set or []))
    check_certifiable(chosen, weights)
    reading = {
        "data_dir": data_dir,
        "target": target,
        "task": task,
        "fold": fold,
        "image_size": image_size,
        "seed": split_seed or 0,
        "validation_share": VALIDATION_SHARE if validation_share is None else validation_share,
    }
    fitting = {
        "seed": seed,
        "batch_size": 64 if batch_size is None else batch_size,
        "device": usable_device(device),
    }
    config = {
        "method": method,
        "options": to_json(chosen),
        "model": {"name": model, "weights": weights},
        "data": {"source": source, "augment": bool(augment), **reading},
        **fitting,
        "out": out,
    }
    if print_config:
        print(dumps(config, indent=2))
        return 0
    check_out(Path(out), overwrite=overwrite)
    splits = data.splits(source, **reading)
    fitted = {"batch_size": fitting["batch_size"], "weights": weights, "augment": bool(augment)}
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
