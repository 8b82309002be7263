"""Predictions of a posterior on a whole data set: collected in one pass, kept on the CPU, savable.

N counts examples; for segmentation-like outputs every position of every image is an example.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayesify.core.batches import batch_size, split_batch, to_device
from bayesify.core.errors import DataError, LoadError, ShapeError
from bayesify.core.types import Inputs, Named
from bayesify.likelihoods.predictive import Predictive

OnBatch = Callable[[int], None]
"""Called after every batch with the number of inputs it held; enough for a progress bar."""


class Predicts(Protocol):
    """What evaluation needs of a posterior."""

    @property
    def device(self) -> torch.device:
        """Where the inputs must lie."""
        ...

    def predict(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Predictive:
        """Distribution of y for a batch; without a generator always from the same draws."""
        ...


@dataclass(frozen=True)
class Predictions:
    """What a posterior says about N examples, next to what is true of them. All on the CPU.

    Args:
        task: "classification", "multilabel" or "regression".
        values: The tensors of `Predictive.summary()` over all N examples: `probs` (N, C) or (N, L)
            with `entropy` and `mutual_information` (N,), or `mean`, `variance` and `epistemic`
            (N, D).
        log_prob: Log density of the target under the averaged predictive, nats per example.
        target: Class indices (N,), labels (N, L) or values (N, D).
        scores: What else `Predictive.scores()` says of the targets, over all N examples: for
            regression `crps`, in the units of the target, and `pit`, both (N, D). Empty where the
            predictive has no such scores, and in files that were saved without.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> truth = torch.tensor([0, 1])
        >>> log_prob = probs.gather(1, truth[:, None]).log().squeeze(1)
        >>> predictions = Predictions("classification", {"probs": probs}, log_prob, truth)
        >>> len(predictions), predictions.probs.argmax(1).tolist()
        (2, [0, 1])
    """

    task: str
    values: Named
    log_prob: Float[Tensor, " examples"]
    target: Shaped[Tensor, "examples *dims"]
    scores: Named = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.target)

    @property
    def probs(self) -> Float[Tensor, "examples classes"]:
        """Averaged probabilities of the classes or labels."""
        return self._value("probs")

    @property
    def log_probs(self) -> Float[Tensor, "examples classes"]:
        """Log of `probs`; a probability that has underflowed counts as the smallest number."""
        return self.probs.clamp_min(torch.finfo(self.probs.dtype).tiny).log()

    @property
    def entropy(self) -> Float[Tensor, " examples"]:
        """Entropy of the averaged predictive, nats."""
        return self._value("entropy")

    @property
    def mutual_information(self) -> Float[Tensor, " examples"]:
        """Mutual information of y and the weights, nats."""
        return self._value("mutual_information")

    @property
    def mean(self) -> Float[Tensor, "examples dims"]:
        """Predictive mean, in the units of the target."""
        return self._value("mean")

    @property
    def variance(self) -> Float[Tensor, "examples dims"]:
        """Predictive variance, in squared units of the target."""
        return self._value("variance")

    @property
    def epistemic(self) -> Float[Tensor, "examples dims"]:
        """The part of `variance` that comes from the weights."""
        return self._value("epistemic")

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; a file of that name is replaced in one step or not at all."""
        tensors = {f"values/{name}": each.contiguous() for name, each in self.values.items()}
        tensors |= {f"scores/{name}": each.contiguous() for name, each in self.scores.items()}
        tensors |= {"log_prob": self.log_prob.contiguous(), "target": self.target.contiguous()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(tensors, draft, metadata={"task": self.task})
        os.replace(draft, path)

    @classmethod
    def load(cls, path: str | Path) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            LoadError: when the file is missing, broken, or holds something else.
        """
        try:
            with safe_open(Path(path), framework="pt") as file:
                task = (file.metadata() or {})["task"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            log_prob, target = tensors.pop("log_prob"), tensors.pop("target")
        except (OSError, SafetensorError, KeyError) as reason:
            raise LoadError(
                f"expected predictions saved by `Predictions.save` at {path}, got {reason!r}; "
                f"collect and save them again."
            ) from reason
        values, scores = _under("values/", tensors), _under("scores/", tensors)
        return cls(task, values, log_prob, target, scores)

    def _value(self, name: str) -> Tensor:
        if name not in self.values:
            raise ShapeError(
                f"expected predictions with `{name}`, got a {self.task} task, which has "
                f"{', '.join(sorted(self.values))}."
            )
        return self.values[name]


def collect(
    posterior: Predicts,
    loader: Iterable[Any],
    *,
    num_samples: int = 32,
    chunk_size: int | None = None,
    on_batch: OnBatch | None = None,
) -> Predictions:
    """Predict every batch of `loader` with the same weight samples and keep summaries and scores.

    A predictive of the user's own needs `task`, `log_prob` and `summary` only.

    Args:
        posterior: What predicts.
        loader: Batches `(inputs, target)`, or mappings with a `labels` or `target` entry.
        num_samples: Weight samples S.
        chunk_size: Weight samples evaluated at once; None: the posterior decides.
        on_batch: Called after every batch with the number of inputs it held.

    Raises:
        DataError: when the loader yields nothing.
    """
    task = ""
    rows: list[Named] = []
    values: Named = {}
    for predictive, target in _predict(posterior, loader, num_samples, chunk_size, on_batch):
        task = predictive.task
        values = predictive.summary()
        scores = {f"scores/{name}": each for name, each in _scores(predictive, target).items()}
        if "mean" in values:  # (B,) and (B, D) are both welcome as targets
            target = target.reshape(values["mean"].shape)
        rows.append(_on_cpu(flatten_positions({**values, **scores, "target": target})))
    whole = _concatenate(rows)
    scores, target = _under("scores/", whole), whole["target"]
    values = {name: whole[name] for name in values}
    return Predictions(task, values, scores.pop("log_prob"), target, scores)


def collect_unlabelled(
    posterior: Predicts,
    loader: Iterable[Any],
    *,
    num_samples: int = 32,
    chunk_size: int | None = None,
    on_batch: OnBatch | None = None,
) -> Named:
    """As `collect`, for data whose labels mean nothing to the model; returns only the `values`.

    Out-of-distribution data may have other classes than the model: their targets are never read.
    """
    rows = [
        _on_cpu(flatten_positions(predictive.summary()))
        for predictive, _ in _predict(posterior, loader, num_samples, chunk_size, on_batch)
    ]
    return _concatenate(rows)


def flatten_positions(values: Named) -> Named:
    """Every position an example: `probs` (B, C, *positions) -> (B * positions, C), others (-1,).

    Summaries without positions, `probs` (B, C), come back as they are.
    """
    if "probs" not in values or values["probs"].ndim == 2:
        return values
    probs = values["probs"]
    flat = {name: each.reshape(-1) for name, each in values.items() if name != "probs"}
    return {"probs": probs.movedim(1, -1).reshape(-1, probs.shape[1]), **flat}


def _scores(predictive: Predictive, target: Tensor) -> Named:
    if hasattr(predictive, "scores"):
        return predictive.scores(target)
    return {"log_prob": predictive.log_prob(target)}


def _under(prefix: str, tensors: Named) -> Named:
    """The tensors whose names start with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)
    }


def _predict(
    posterior: Predicts,
    loader: Iterable[Any],
    num_samples: int,
    chunk_size: int | None,
    on_batch: OnBatch | None,
) -> Iterator[tuple[Predictive, Tensor]]:
    for batch in loader:
        inputs, target = to_device(split_batch(batch), posterior.device)
        yield (
            posterior.predict(inputs, num_samples=num_samples, chunk_size=chunk_size),
            target,
        )
        if on_batch is not None:
            on_batch(batch_size(inputs))


def _on_cpu(values: Named) -> Named:
    return {name: _widened(each.detach()).cpu() for name, each in values.items()}


def _widened(value: Tensor) -> Tensor:
    """Half precision is for computing, not for keeping: sums over N would lose digits."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _concatenate(rows: list[Named]) -> Named:
    if not rows:
        raise DataError("expected at least one batch to predict, got an empty loader; check it.")
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
