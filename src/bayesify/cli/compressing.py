"""`bayesify compress`: a saved posterior in few bytes."""

from json import dumps
from pathlib import Path

from rich.console import Console

from bayesify.cli.saved import open_run
from bayesify.compression import Sizes, compressed
from bayesify.distributions import SharedNormal
from bayesify.errors import OptionError
from bayesify.persistence import disk_bytes, save


def compress(
    *,
    run: str,
    out: str | None,
    codes: int,
    outliers: float,
    overwrite: bool,
    json: bool,
) -> int:
    """Write the small posterior and print its bytes; returns the exit code."""
    if not 1 <= codes <= 2**15:
        raise OptionError(f"--codes {codes}: expected 1 to {2**15}.")
    if not 0 <= outliers <= 0.5:
        raise OptionError(f"--outliers {outliers}: expected a share from 0 to 0.5.")
    posterior, notes = open_run(run)
    small = compressed(posterior, codes=codes, outliers=outliers)
    folder = Path(out or f"{run.rstrip('/')}-small")
    save(small, folder, overwrite=overwrite, notes=notes.to_json())
    sizes, before = Sizes.of(folder, small), disk_bytes(Path(run))
    statistics = small.q.statistics() if isinstance(small.q, SharedNormal) else {}
    if json:
        found = {"run": run, "out": str(folder), "before": before}
        print(dumps(found | sizes.to_json() | statistics))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{folder}: {sizes.saved:,} bytes, everything counted")
    for label, size in (
        (f"{run} as it was", before),
        ("one network, deterministic", sizes.network),
        ("a mean and a deviation for every random weight", sizes.pair),
    ):
        console.print(f"  {sizes.saved / size:6.1%} of {size:,} bytes: {label}")
    counts = ", ".join(f"{count:,} {name}" for name, count in statistics.items())
    console.print(f"  {counts}: {small.trainable_parameters:,} learnt numbers")
    console.print(f"See what it costs in accuracy: bayesify evaluate {folder}")
    return 0
