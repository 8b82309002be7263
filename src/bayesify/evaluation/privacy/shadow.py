"""Shadow posteriors: the attack of someone who can fit posteriors to data like the target's own.

Fits a method to random halves of a pool of examples and lets every posterior be the target once,
with the others as shadows; `likelihood_ratio.py` has the score and the source (Carlini et al. 2022,
arXiv 2112.03570). Cost: `count` fits, which a folder keeps.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bayesify.core.batches import split_batch, tensors_of
from bayesify.core.errors import (
    DataError,
    LoadError,
    OptionError,
    ShapeError,
    UnsupportedModelError,
)
from bayesify.core.options import check_options, option, to_json
from bayesify.core.streams import stream
from bayesify.data.examples import Examples
from bayesify.data.loading import as_loader, evenly, subset
from bayesify.evaluation.findings import Findings
from bayesify.evaluation.privacy.likelihood_ratio import (
    balanced_halves,
    likelihood_ratio_findings,
    true_class_logits,
)
from bayesify.likelihoods import Likelihood, resolve
from bayesify.likelihoods.predictive import ClassPredictive
from bayesify.training.fit import fit
from bayesify.training.holdout import count
from bayesify.training.method import Method
from bayesify.weights.named import buffers_of, digest, raw_bytes, weights_of

Build = Callable[[int], nn.Module]
"""Builds the network from a seed."""

OnFit = Callable[[int], None]
"""Called with the number of each shadow that has been fitted (not of those read from a folder)."""


@dataclass(frozen=True)
class Shadows:
    """Which posteriors are fitted, and to what.

    Example:
        >>> Shadows(count=8, examples=1000)
        Shadows(count=8, examples=1000, seed=0)
    """

    count: int = option(16, help="posteriors fitted, an even number", at_least=4)
    examples: int | None = option(None, help="size of the pool; none: all the data", at_least=10)
    seed: int = option(0, help="decides the halves and the seed of every fit", at_least=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.count % 2:
            raise OptionError(
                f"Shadows(count={self.count}): expected an even number, so that every example is "
                f"in exactly half of them; take {self.count + 1}."
            )


def shadow_attack(
    model: nn.Module | Build,
    method: Method,
    data: Dataset[Any] | tuple[Tensor, Tensor],
    *,
    shadows: Shadows = Shadows(),
    likelihood: str | Likelihood = "categorical",
    batch_size: int = 64,
    device: torch.device | str | None = None,
    num_samples: int = 32,
    out: str | Path | None = None,
    on_fit: OnFit | None = None,
) -> Findings:
    """How well members can be told by someone who can fit posteriors to data like the target's.

    Args:
        model: A function of a seed that builds a new network, for those trained from scratch: the
            attacker does not know the target's initial weights. Or a network, whose weights all
            fits start from: right for a pretrained one that is public.
        method: What is attacked; it is run `shadows.count` times.
        data: The pool of examples; every fit takes about half of them. No loader.
        shadows: How many fits, on how many examples, and their seed.
        likelihood: Of one class out of C.
        batch_size: Examples a batch, in training.
        device: Where to train; None for where the model is.
        num_samples: Weight samples S of each prediction.
        out: Folder for what each shadow says. Those that are there already are read, not fitted.
        on_fit: Called after each fit with the shadow's number.

    Returns:
        Metrics "lira_auc", "lira_tpr1" and "lira_tpr01" (true-positive rates at false-positive
        rates of 1 % and 0.1 %): means over targets, each with "..._se", the standard error over
        targets, which share shadows and examples, so that it is too small, by up to a third. The
        curve "lira": mean "tpr" at each "fpr", and the number of "shadows" and "examples".

    Raises:
        OptionError, DataError, ShapeError: before anything is fitted.
        LoadError: `out` holds shadows of other settings or broken ones.

    Example:
        >>> from bayesify.methods import MAP
        >>> x, y = torch.randn(40, 4), torch.randint(2, (40,))
        >>> found = shadow_attack(
        ...     nn.Linear(4, 2), MAP(epochs=1), (x, y), shadows=Shadows(count=4)
        ... )
        >>> found.curves["lira"]["shadows"], 0 <= found.metrics["lira_auc"] <= 1
        (4, True)
    """
    likelihood = resolve(likelihood)
    if likelihood.task != ClassPredictive.task:
        raise OptionError(
            f"likelihood={type(likelihood).__name__}: the attack reads the probability of the true "
            f"class, so it expects 'categorical'; use `membership` for other tasks."
        )
    pool = _pool(data, shadows.examples)
    generator = stream(shadows.seed, "halves")
    inside = balanced_halves(count(pool), shadows.count, generator)
    seeds = torch.randint(2**31, (shadows.count,), generator=generator).tolist()
    unchanged = pool.plain() if isinstance(pool, Examples) else pool
    first = _network(model, seeds[0])
    settings = {
        "method": to_json(method),
        "shadows": [shadows.count, shadows.seed],
        "likelihood": [type(likelihood).__name__, likelihood.options()],
        "batch_size": batch_size,
        "num_samples": num_samples,
        "data": _content(unchanged),
        "weights": digest(weights_of(first) | buffers_of(first)),
    }
    shelf = None if out is None else _Shelf(Path(out), _digest(json.dumps(settings).encode()))
    phi = {} if shelf is None else shelf.read(shadows.count, inside.shape[1])
    for shadow, seed in enumerate(seeds):
        if shadow in phi:
            continue
        posterior = fit(
            _network(model, seed),
            subset(pool, inside[shadow].nonzero().squeeze(1)),
            method,
            likelihood=likelihood,
            seed=seed,
            device=device,
            batch_size=batch_size,
        )
        phi[shadow] = true_class_logits(posterior, unchanged, num_samples=num_samples)
        if shelf is not None:
            shelf.put(shadow, phi[shadow], inside[shadow])
        if on_fit is not None:
            on_fit(shadow)
    return likelihood_ratio_findings(torch.stack([phi[each] for each in sorted(phi)]), inside)


@dataclass(frozen=True)
class _Shelf:
    """A folder with one file a shadow, all of the same settings."""

    folder: Path
    settings: str

    def read(self, count: int, examples: int) -> dict[int, Tensor]:
        """What the shadows say that are there, by number."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"cannot write to {self.folder} ({error.strerror}); give a folder."
            ) from error
        files = {shadow: self._file(shadow) for shadow in range(count)}
        return {
            shadow: self._phi(file, examples) for shadow, file in files.items() if file.exists()
        }

    def put(self, shadow: int, phi: Tensor, inside: Tensor) -> None:
        """Write one shadow's file, in one step or not at all."""
        file = self._file(shadow)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        save_file({"phi": phi, "inside": inside}, draft, metadata={"settings": self.settings})
        os.replace(draft, file)

    def _file(self, shadow: int) -> Path:
        return self.folder / f"shadow-{shadow:03d}.safetensors"

    def _phi(self, path: Path, examples: int) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                settings = (file.metadata() or {})["settings"]
                phi = file.get_tensor("phi")
        except (OSError, SafetensorError, KeyError) as error:
            raise LoadError(f"{path} is no shadow's file ({error!r}); delete it.") from error
        if settings != self.settings or phi.shape != (examples,):
            raise LoadError(
                f"{path} was fitted with another method, model, data, seed or other options than "
                f"these; give another folder, or delete this one to start anew."
            )
        return phi


def _pool(data: Any, examples: int | None) -> Dataset[Any]:
    if isinstance(data, DataLoader):
        raise DataError(
            "data: expected a Dataset or the tensors (x, y), of which each shadow takes some, got "
            "a DataLoader; give its data set."
        )
    pool = as_loader(data, batch_size=1, shuffle=False).dataset
    total = count(pool)
    if total < max(examples or 0, 10):
        raise DataError(
            f"data: expected at least {max(examples or 0, 10)} examples, got {total}; lower "
            f"Shadows.examples or bring more."
        )
    return pool if examples is None else cast(Dataset[Any], subset(pool, evenly(total, examples)))


def _network(model: Any, seed: int) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise UnsupportedModelError(
            f"model: expected a torch.nn.Module or a function of a seed that builds one, got "
            f"{model!r}."
        )
    with torch.random.fork_rng(devices=[]):  # for builders that draw from the global generator
        torch.default_generator.manual_seed(seed)
        built = model(seed)
    if not isinstance(built, nn.Module):
        raise UnsupportedModelError(
            f"model: expected the function to return a torch.nn.Module, got {type(built).__name__}."
        )
    return built


def _content(pool: Dataset[Any]) -> str:
    """Digest of all inputs and targets, which are looked at for the first time."""
    parts = []
    for batch in as_loader(pool, batch_size=256, shuffle=False):
        inputs, target = split_batch(batch)
        if target.ndim != 1:
            raise ShapeError(
                f"data: expected one class index for each example, got targets of shape "
                f"(examples, {', '.join(map(str, target.shape[1:]))}); who is a member is asked "
                f"of whole examples."
            )
        parts += [_tensor(each) for each in (*tensors_of(inputs), target)]
    return _digest(*parts)


def _tensor(value: Tensor) -> bytes:
    return f"{value.dtype}{tuple(value.shape)}".encode() + raw_bytes(value)


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()
