"""What a fitted posterior costs, measured; and what it was measured with."""

import ctypes
import gc
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesify.core.errors import BayesifyError, UnsupportedModelError
from bayesify.data.loading import Data
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.persistence import disk_bytes, save
from bayesify.training.cost import FlopCounter
from bayesify.training.fit import fit
from bayesify.training.method import Method

PREDICTIONS = 15
MOST_SECONDS = 2.0


def cost(
    posterior: Posterior, example: Tensor, folder: Path, *, num_samples: int
) -> dict[str, Any]:
    """The costs of a fitted posterior, by the names that the report knows.

    Args:
        posterior: It has a record of its fit.
        example: A batch of one, as the model sees it.
        folder: A temporary copy is saved here, to see how large it is.
        num_samples: Weight samples asked for in a prediction.
    """
    record = posterior.record
    return {
        "trainable_parameters": posterior.trainable_parameters,
        "stored_parameters": posterior.stored_parameters,
        "disk_bytes": saved_bytes(posterior, folder),
        "peak_memory_bytes": record.peak_memory_bytes if record else None,
        "fit_seconds": record.seconds if record else None,
        "seconds_per_epoch": record.seconds_per_epoch if record else None,
        "seconds_per_step": record.seconds_per_step if record else None,
        "flops_per_step": record.flops_per_step if record else None,
        "flops_per_prediction": flops(posterior, example, num_samples=num_samples),
        "member_parameters": posterior.member_parameters,
        "milliseconds_per_prediction": milliseconds(posterior, example, num_samples=num_samples),
        "num_samples": samples_used(posterior, example, num_samples=num_samples),
    }


def flops(posterior: Posterior, example: Tensor, *, num_samples: int) -> int:
    """Floating-point operations of a prediction, as torch counts them: two a multiply-add."""
    posterior.predict(example, num_samples=num_samples)  # what is found out once is not counted
    with FlopCounter() as counter:
        posterior.predict(example, num_samples=num_samples)
    return counter.total


def samples_used(posterior: Posterior, example: Tensor, *, num_samples: int) -> int:
    """How many weight samples a prediction really takes: a finite set of members has its own."""
    with torch.no_grad():
        return len(posterior.outputs(example, num_samples=num_samples))


@contextmanager
def quick_collection() -> Iterator[Callable[[], None]]:
    """Gives a function that sets aside all objects alive now, until the block ends.

    Python's collector then no longer walks through them: torch brings a million, which takes
    longer than to fit a small net.
    """

    def set_aside() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield set_aside
    finally:
        gc.unfreeze()


def release_memory() -> None:
    """Give freed memory back to the system, so that the growth in the next fit can be seen.

    Does nothing where the C library cannot.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def saved_bytes(posterior: Posterior, folder: Path) -> int | None:
    """Bytes on disk, found by saving it; None for a posterior that has no file format."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".size-") as temporary:
        try:
            return disk_bytes(save(posterior, Path(temporary) / "posterior"))
        except UnsupportedModelError:
            return None


def milliseconds(posterior: Posterior, example: Tensor, *, num_samples: int) -> float:
    """Median time to predict one example, after two predictions that are not timed."""
    seconds: list[float] = []
    start = time.perf_counter()
    for number in range(2 + PREDICTIONS):
        before = time.perf_counter()
        posterior.predict(example, num_samples=num_samples)
        if posterior.device.type == "cuda":
            torch.cuda.synchronize(posterior.device)
        now = time.perf_counter()
        if number >= 2:
            seconds.append(now - before)
        if seconds and now - start > MOST_SECONDS:
            break
    return 1000 * statistics.median(seconds)


def warm_up(
    model: nn.Module,
    data: Data,
    method: Method,
    *,
    likelihood: str | Likelihood,
    device: str,
    validation: Data | None = None,
) -> None:
    """A fit of one epoch on a few examples, so that torch's own start is not in any timing."""
    try:
        fit(
            model,
            data,
            shortened(method),
            validation=validation,
            likelihood=likelihood,
            device=device,
        )
    except BayesifyError:
        return  # the real fit will say what is wrong


def shortened(method: Any) -> Any:
    """The same method with one epoch in each phase; some have no other number of epochs.

    Example:
        >>> from bayesify.methods import STF
        >>> shortened(STF()).epochs, shortened(STF()).pretrain.epochs
        (1, 1)
    """
    first = method.before()
    phases = {} if first is None else {"pretrain": shortened(first)}
    epochs = {"epochs": 1} if any(each.name == "epochs" for each in fields(method)) else {}
    return replace(method, **epochs, **phases)


def git_revision() -> str | None:
    """The commit of bayesify's own checkout, "-dirty" if its source has changed; None if none."""
    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    if package.parent.name != "src" or not (root / ".git").exists():
        return None
    revision = _git(root, "rev-parse", "--short=12", "HEAD")
    if revision and _git(root, "status", "--porcelain", "--", "src"):
        return revision + "-dirty"
    return revision


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
