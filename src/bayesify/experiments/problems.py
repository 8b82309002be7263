"""The data and models of a suite: read, checked and cut into cells before any training."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bayesify import data, models
from bayesify.core.errors import OptionError
from bayesify.data.examples import VALIDATION_SHARE, Examples, Splits
from bayesify.data.loading import evenly, subset
from bayesify.data.sources import SOURCES, find_path
from bayesify.experiments.cell import Cell, digest
from bayesify.experiments.choices import likelihood_options
from bayesify.experiments.suite import Entry, Suite
from bayesify.training.method import Method


@dataclass(frozen=True, eq=False)
class Arena:
    """One fold of a data set, with the foreign data it is judged against.

    Args:
        source: As the user named it.
        name: As tables show it.
        fold: Which of the given test parts, None where there is nothing to choose.
        splits: The data.
        ood_name: Name of the foreign data, None for none.
        ood: The foreign data.
        digest: Of the contents of the user's own files, "" for known data.
    """

    source: str
    name: str
    fold: int | None
    splits: Splits
    ood_name: str | None
    ood: Examples | None
    digest: str


def arenas(suite: Suite) -> list[Arena]:
    """Read all data of the suite, and build each model once to see that it can be.

    Raises:
        BayesifyError: data that are missing or unusable, unknown models, weights that do not fit,
            options that a likelihood does not take.
    """
    usable_device(suite.device)
    ready: list[Arena] = []
    for source in suite.data:
        content = "" if source in SOURCES else _content(find_path(source, suite.data_dir))
        folds = [_arena(suite, source, fold, content) for fold in _folds(suite, source)]
        for model in suite.models:
            build(suite, folds[0], model, seed=suite.seeds[0])
        for entry in suite.methods:
            check_certifiable(entry.method, suite.weights)
            likelihood_options(folds[0].splits.task, entry.likelihood)
        ready += folds
    return ready


def build(suite: Suite, arena: Arena, model: str, *, seed: int) -> nn.Module:
    """A fresh net, with the suite's weights if it has any."""
    splits = arena.splits
    net = models.build(model, splits.input_shape, splits.num_outputs, seed=seed)
    if suite.weights is not None:
        models.load_weights(net, suite.weights)
    return net


def cells(suite: Suite, arena: Arena) -> Iterator[Cell]:
    """All cells on this data set; those that share a fit follow one another."""
    setup = {
        "num_samples": suite.num_samples,
        "batch_size": suite.batch_size,
        "split_seed": suite.split_seed,
    }
    usual_share = suite.validation_share == VALIDATION_SHARE
    optional = {  # absent where it is the default, so that results from before it came still count
        "augment": suite.augment or None,
        "task": suite.task,
        "image_size": suite.image_size,
        "data_digest": arena.digest or None,
        "weights": Path(suite.weights).name if suite.weights else None,
        "weights_digest": _content(Path(suite.weights)) if suite.weights else None,
        "validation_share": None if usual_share else suite.validation_share,
        "evaluate": suite.aspects.to_json() or None,
    }
    setup |= {name: value for name, value in optional.items() if value is not None}
    for model in suite.models:
        for seed in suite.seeds:
            row = [
                Cell(
                    entry=entry,
                    model=model,
                    data=arena.name,
                    fold=arena.fold,
                    seed=seed,
                    split=suite.split,
                    ood=arena.ood_name,
                    setup=setup | _noise(entry, arena),
                )
                for entry in suite.methods
            ]
            order = list(dict.fromkeys(cell.fit_identity for cell in row))
            yield from sorted(row, key=lambda cell: order.index(cell.fit_identity))


def check_certifiable(method: Method, weights: str | None) -> None:
    """Refuse to certify a network that comes with weights, which may have seen all data.

    Raises:
        OptionError: both are asked for.
    """
    if weights is not None and method.certify_split:
        raise OptionError(
            f"certify_split={method.certify_split} with weights {weights}: expected one of them, "
            f"as nobody knows what data the weights have seen; leave one out."
        )


def usable_device(name: str | None) -> str:
    """The device itself, "cpu" for None.

    Raises:
        OptionError: there is no such device here.
    """
    try:
        torch.empty(0, device=name or "cpu")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"device {name!r} cannot be used here ({reason}); choose another, such as cpu."
        ) from error
    return name or "cpu"


def _noise(entry: Entry, arena: Arena) -> dict[str, Any]:
    options = likelihood_options(arena.splits.task, entry.likelihood)
    return {"likelihood": options} if options else {}


def _folds(suite: Suite, source: str) -> Sequence[int | None]:
    """What is asked for; of data that give no choice, "all" is the one test part they have."""
    if suite.folds != "all":
        return suite.folds or (None,)
    return range(data.num_folds(source, data_dir=suite.data_dir)) or (None,)


def _arena(suite: Suite, source: str, fold: int | None, content: str) -> Arena:
    splits = data.splits(
        source,
        data_dir=suite.data_dir,
        target=suite.target,
        task=suite.task,
        seed=suite.split_seed,
        fold=fold,
        image_size=suite.image_size,
        validation_share=suite.validation_share,
    )
    named = "photos" if splits.is_image else None
    ood_name = named if suite.ood == "auto" else suite.ood
    if ood_name == "each-other":
        ood_name = suite.data[(suite.data.index(source) + 1) % len(suite.data)]
    ood = None
    if ood_name is not None:
        ood = data.ood(ood_name, like=splits, data_dir=suite.data_dir, image_size=suite.image_size)
    if suite.augment:
        splits = data.augmented(splits)
    name = source if suite.target is None else f"{source} (target {suite.target})"
    return Arena(source, name, fold, splits, ood_name, ood, content)


def _content(path: Path) -> str:
    """Digest of a file's bytes; of the names and sizes of all files in a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest([[str(file.relative_to(path)), file.stat().st_size] for file in files])
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def some_of(examples: Examples, count: int) -> Examples:
    """`count` examples spread evenly over all of them."""
    index = evenly(len(examples), min(count, len(examples)))
    return cast(Examples, subset(examples, index))
