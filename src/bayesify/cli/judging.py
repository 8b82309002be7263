"""`bayesify evaluate`: judge a saved posterior on held-out data."""

from json import dumps

from rich.console import Console

from bayesify import data
from bayesify.cli.saved import open_run
from bayesify.compare.problems import usable_device
from bayesify.errors import OptionError
from bayesify.evaluation.evaluate import evaluate as judge

SPLITS = ("test", "validation", "train")


def evaluate(
    *,
    run: str,
    source: str | None,
    data_dir: str | None,
    split: str,
    ood: str | None,
    num_samples: int | None,
    device: str | None,
    json: bool,
) -> int:
    """Print the evaluation; returns the exit code. Arguments are the command's flags."""
    if split not in SPLITS:
        raise OptionError(f"--split {split}: expected one of {', '.join(SPLITS)}.")
    if num_samples is not None and num_samples < 1:
        raise OptionError(f"--num-samples {num_samples}: expected at least 1.")
    posterior, notes = open_run(run, device=usable_device(device))
    splits = notes.splits(source, data_dir)
    if not len(getattr(splits, split)):
        raise OptionError(
            f"--split {split}: that part is empty, since {run} was fitted with "
            f"--validation-share 0; choose test."
        )
    foreign = ood or ("photos" if splits.is_image else "none")
    result = judge(
        posterior,
        getattr(splits, split),
        ood=None if foreign == "none" else data.ood(foreign, like=splits, data_dir=data_dir),
        num_samples=num_samples or 32,
        target_scale=splits.target_scale,
    )
    if json:
        described = {"run": run, "data": splits.name, "split": split, "ood": foreign}
        print(dumps({**described, **result.to_json()}))
        return 0
    against = "" if foreign == "none" else f", against {foreign}"
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{run} on {splits.name}, {split} part{against}")
    console.print(str(result), markup=False)
    return 0
