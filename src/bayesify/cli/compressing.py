"""`bayesify compress`: a saved posterior in few bytes."""

from json import dumps
from pathlib import Path
from typing import Annotated

from rich.console import Console

from bayesify.cli import flags
from bayesify.cli.fitting import check_out
from bayesify.cli.flags import HOW, OUTPUT, flag
from bayesify.cli.saved import named_models, open_run, own
from bayesify.core.errors import OptionError
from bayesify.experiments.results import set_aside
from bayesify.methods.sharing.compression import Sizes, compressed
from bayesify.posteriors.persistence import disk_bytes, save
from bayesify.posteriors.weight import WeightPosterior


def compress(
    *,
    run: flags.Run,
    model: flags.OwnModel = None,
    out: Annotated[
        str | None,
        flag(
            "--out", help="Folder to write. [dim]default RUN-small[/]", panel=OUTPUT, metavar="DIR"
        ),
    ] = None,
    codes: Annotated[
        int, flag("--codes", help="Gaussians that the weights share.", panel=HOW)
    ] = 256,
    outliers: Annotated[
        float,
        flag("--outliers", help="Share of the weights that keep one of their own.", panel=HOW),
    ] = 0.01,
    overwrite: flags.Overwrite = False,
    json: flags.AsJson = False,
) -> int:
    """Save a fitted posterior again in a fraction of the bytes, by weights that share Gaussians."""
    place = Path(run).resolve()
    folder = Path(out) if out else place.with_name(f"{place.name}-small")
    if folder.resolve() == place:
        raise OptionError(f"--out {out}: that is {run} itself; choose another folder.")
    check_out(folder, overwrite=overwrite)
    posterior, notes = open_run(run, named=named_models(model))
    if not isinstance(posterior, WeightPosterior):
        raise OptionError(
            f"{run} holds one network, whose dropout is its noise and takes no room; expected "
            f"Gaussians over weights, as of bayesify fit stf or diagonal-laplace."
        )
    before = disk_bytes(place)
    small = compressed(posterior, codes=codes, outliers=outliers)
    save(small, folder, overwrite=overwrite, notes=notes.to_json())
    aside = set_aside(folder)
    sizes = Sizes.of(folder, small)
    tally = small.tally()
    if json:
        found = {"run": run, "out": str(folder), "before": before}
        print(dumps(found | sizes.to_json() | tally))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    if aside:
        console.print(f"What was found about the posterior before is now in {aside}.")
    console.print(f"{folder}: {sizes.saved:,} bytes, everything counted")
    for label, size in (
        (f"{run} as it was", before),
        ("one network, deterministic", sizes.network),
        ("a mean and a deviation for every random weight", sizes.pair),
    ):
        console.print(f"  {sizes.saved / size:6.1%} of {size:,} bytes: {label}")
    counts = ", ".join(f"{count:,} {name}" for name, count in tally.items())
    console.print(f"  {counts}: {small.trainable_parameters:,} learnt numbers")
    if small.q is posterior.q:
        console.print(f"  The weights of {run} share Gaussians already: copied as they are.")
    console.print(f"See what it costs in accuracy: bayesify evaluate {folder}{own(notes.model)}")
    return 0
