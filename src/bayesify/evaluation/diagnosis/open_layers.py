"""Which layer do the data leave open? Each is retrained alone from random starts.

A layer whose retrainings predict equally well with weights far apart has many optima, so a single
setting of its weights is an arbitrary one: a reason to make it Bayesian. Lei et al. 2021, arXiv
2112.06281 (abstract), observe it for the first layer, which motivates STF. The numbers below are
our own choice; the abstract names none. For the weights a, b of one layer, its tensors flattened:

    correlation  corr(a, b) = <a - mean a, b - mean b> / (||a - mean a|| ||b - mean b||)     Pearson
    distance     d(a, b)    = 2 ||a - b|| / (||a|| + ||b||)      sqrt(2) for orthogonal, equal norms
    disagreement share of examples whose predicted classes differ (labels; RMS of mean differences)

All else is bitwise fixed, and the batches are the same for all (`retraining.py` in this folder).

How to be misled: weights may differ in directions that change nothing, because an input is constant
(a border pixel): `varying_correlation` leaves those out, for `nn.Linear`. Too few epochs end near
the starts, not at optima: compare the scores with that of the model as given. Weight decay draws
retrainings together: on digits (64-100-100-10) the first layer's correlation rose from 0.2 after 20
epochs of MAP to 0.7 after 300, and stayed below that of the last; so compare layers, not problems.
And weights that lie far apart may still be joined by a valley of equal loss.
Cost: (layers x starts) trainings of one layer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.errors import OptionError
from bayesify.core.streams import stream
from bayesify.core.types import Named, Readout
from bayesify.data.loading import Data
from bayesify.evaluation.diagnosis.layers import (
    layers_of,
    redrawable_layers,
    selector_of,
    varying_inputs,
)
from bayesify.evaluation.diagnosis.retraining import Retraining
from bayesify.evaluation.metrics.scores import accuracy, label_accuracy, mean_nll, rmse
from bayesify.evaluation.predictions import Predictions
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import Likelihood
from bayesify.methods.members.fresh import fresh_weights
from bayesify.methods.members.map import MAP
from bayesify.training.method import Method
from bayesify.weights.named import weights_of
from bayesify.weights.select import Matching

OnFit = Callable[[int, int], None]
"""Called after every retraining with how many are done, and how many there are."""

SCORES = {"classification": "accuracy", "multilabel": "label_accuracy", "regression": "rmse"}
"""Task -> the score that retrainings are compared by."""

OF_PREDICTIONS = ("score", "nll", "disagreement")
OF_WEIGHTS = ("correlation", "varying_correlation", "correlation_with_given", "distance")


@dataclass(frozen=True)
class LayerDiagnosis:
    """How far apart the retrainings of one layer end. Pairs are ordered 01, 02, ..., 12, ....

    The mean of each tuple of numbers is a property without the s: `correlation`, `distance`, ....

    Args:
        name: Of the module; empty when it is the model itself.
        names: Its weights, as in `model.named_parameters()`.
        shapes: Theirs.
        where: Selects them: `STF(pretrain=None, where=layer.where)`.
        scores: Of each retraining: accuracy, label accuracy or RMSE.
        nlls: Of each retraining, nats per example.
        correlations: Of each pair, Pearson's; NaN where all weights of one are equal.
        varying_correlations: The same over the biases and those weights alone whose inputs vary in
            the data; empty where that is not known (all but plain `nn.Linear`).
        correlations_with_given: Of each retraining with the weights the model came with.
        distances: Of each pair, relative to their mean norm.
        distances_to_given: Of each retraining from the weights the model came with, likewise.
        disagreements: Of each pair: share of examples (labels) predicted differently, or root mean
            square difference of the predicted means, in the units of the target.
    """

    name: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    where: Matching
    scores: tuple[float, ...]
    nlls: tuple[float, ...]
    correlations: tuple[float, ...]
    varying_correlations: tuple[float, ...]
    correlations_with_given: tuple[float, ...]
    distances: tuple[float, ...]
    distances_to_given: tuple[float, ...]
    disagreements: tuple[float, ...]

    @property
    def num_weights(self) -> int:
        """How many numbers the layer holds."""
        return sum(map(math.prod, self.shapes))

    @property
    def similarity(self) -> float:
        """`varying_correlation` where it is known, `correlation` elsewhere."""
        return self.varying_correlation if self.varying_correlations else self.correlation

    score = property(lambda self: fmean(self.scores))
    nll = property(lambda self: fmean(self.nlls))
    correlation = property(lambda self: fmean(self.correlations))
    varying_correlation = property(lambda self: fmean(self.varying_correlations or [math.nan]))
    correlation_with_given = property(lambda self: fmean(self.correlations_with_given))
    distance = property(lambda self: fmean(self.distances))
    distance_to_given = property(lambda self: fmean(self.distances_to_given))
    disagreement = property(lambda self: fmean(self.disagreements))

    def to_json(self) -> dict[str, Any]:
        """All numbers and their means (under `mean`); one that is not finite becomes None."""
        shown = *OF_PREDICTIONS, *OF_WEIGHTS, "distance_to_given"
        means = {name: getattr(self, name) for name in shown}
        named = asdict(self) | {"where": self.where.patterns, "num_weights": self.num_weights}
        return _plain({**named, "mean": means})


@dataclass(frozen=True)
class Diagnosis:
    """The layers in the order in which they run.

    Args:
        task: "classification", "multilabel" or "regression".
        starts: Retrainings of each layer.
        given: Score of the model as it came.
        layers: The diagnosed ones.
        left_out: Names of modules with weights that were not diagnosed.
    """

    task: str
    starts: int
    given: float
    layers: tuple[LayerDiagnosis, ...]
    left_out: tuple[str, ...] = ()

    @property
    def score_name(self) -> str:
        """What `given` and the layers' scores are."""
        return SCORES[self.task]

    @property
    def most_disparate(self) -> LayerDiagnosis:
        """The layer with the least `similarity`, the first of equals; an undefined one is last."""
        return min(
            self.layers, key=lambda e: math.inf if math.isnan(e.similarity) else e.similarity
        )

    @property
    def suggestion(self) -> str:
        """Which layer to make Bayesian, and why, in a sentence."""
        layer = self.most_disparate
        patterns = ", ".join(f'"{each}"' for each in layer.where.patterns)
        return (
            f"As a rule of thumb, try bayesify.STF(pretrain=None, where=bayesify.matching("
            f"{patterns})): of the {len(self.layers)} layers diagnosed, retrainings of "
            f"`{layer.name or 'the model'}` end in the least similar weights (mean correlation "
            f"{layer.similarity:.2f}, at {self.score_name} {layer.score:.4g} against "
            f"{self.given:.4g} of the model as given), which says that its weights are uncertain, "
            f"but not that a Bayesian layer there predicts better: compare on held-out data."
        )

    def to_json(self) -> dict[str, Any]:
        """All that a table or plot needs, as plain values."""
        own = {name: getattr(self, name) for name in ("task", "starts", "score_name", "given")}
        own |= {"left_out": self.left_out, "suggestion": self.suggestion}
        layers = [each.to_json() for each in self.layers]
        return _plain({**own, "layers": layers, "most_disparate": self.most_disparate.name})

    def __str__(self) -> str:
        rows = [["layer", "weights", self.score_name, "nll", "disagreement", "correlation"]]
        rows[0] += ["if inputs vary", "with given", "distance", ""]
        for each in self.layers:
            numbers = [getattr(each, name) for name in (*OF_PREDICTIONS, *OF_WEIGHTS)]
            cells = ["-" if math.isnan(number) else f"{number:.4f}" for number in numbers]
            mark = "<- most disparate" if each is self.most_disparate else ""
            rows.append([each.name or "(model)", str(each.num_weights), *cells, mark])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{self.task}, each layer retrained alone {self.starts} times, means"]
        lines[0] += f"; {self.score_name} as given {self.given:.4f}"
        for first, *others, mark in rows:
            cells = [cell.rjust(w) for cell, w in zip(others, widths[1:-1], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells, mark]).rstrip())
        if self.left_out:
            lines.append(f"left out: {', '.join(each or '(model)' for each in self.left_out)}")
        return "\n".join([*lines, self.suggestion])


def diagnose(
    model: nn.Module,
    data: Data,
    *,
    validation: Data | None = None,
    layers: Sequence[str] | None = None,
    starts: int = 4,
    method: Method | None = None,
    likelihood: str | Likelihood = "categorical",
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    readout: Readout = read_tensor,
    on_fit: OnFit | None = None,
) -> Diagnosis:
    """Retrain each layer of a trained model alone, from random starts, and compare the optima.

    Args:
        model: A trained network. It stays bitwise as it is.
        data: What it was trained on.
        validation: Where scores and predictions are compared; None for `data`.
        layers: Names of modules, as in `model.named_modules()`; None for every one that holds a
            matrix (kernel, table) of its own and can draw it anew by `reset_parameters`: so no
            norms. Whether the model has them frozen does not matter.
        starts: Retrainings of each layer, at least 2.
        method: Retrains, e.g. `bayesify.MAP(epochs=50)`; None for `bayesify.MAP(epochs=20)`. It
            must leave weights with `requires_grad=False` alone, as MAP does.
        likelihood: As in `fit`; a learnt scale is learnt anew by each retraining.
        seed: Of the starts and of the order of batches.
        batch_size: For data that is no loader.
        device: Where to train; None for where the model is.
        readout: Turns an output object into the tensor that the likelihood reads.
        on_fit: Called after every retraining with (done, total).

    Raises:
        OptionError: fewer than 2 starts, unknown or no layers, or a method that trains other
            weights than those of the layer.
        UnsupportedModelError: no layer can be drawn anew.
        DataError: bad data, or batches of a validation loader in another order each time.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = torch.randn(64, 4), torch.randint(3, (64,))
        >>> diagnosis = diagnose(net, data, starts=2, method=MAP(epochs=1))
        >>> [(layer.name, layer.num_weights) for layer in diagnosis.layers]
        [('0', 40), ('2', 27)]
    """
    if starts < 2:
        raise OptionError(f"starts={starts}: expected at least 2, as pairs are compared.")
    retrain = Retraining(
        model,
        data,
        validation=validation,
        method=method or MAP(epochs=20),
        likelihood=likelihood,
        seed=seed,
        batch_size=batch_size,
        device=device,
        readout=readout,
    )
    chosen = redrawable_layers(retrain.model, layers, retrain.example)
    varying = varying_inputs(retrain.model, chosen, retrain.inputs())
    diagnosed: list[LayerDiagnosis] = []
    for layer, names in chosen.items():
        drawn = fresh_weights(retrain.model, names, starts, stream(seed, "start"))
        found = []
        for start in range(starts):
            found.append(retrain({name: each[start] for name, each in drawn.items()}))
            if on_fit is not None:
                on_fit(len(diagnosed) * starts + start + 1, len(chosen) * starts)
        diagnosed.append(_compared(retrain, layer, found, varying.get(layer)))
    left_out = tuple(e for e in layers_of(retrain.model, retrain.example) if e not in chosen)
    task, score = retrain.given.task, _score(retrain.given)
    return Diagnosis(task, starts, score, tuple(diagnosed), left_out)


def pearson(a: Float[Tensor, " weights"], b: Float[Tensor, " weights"]) -> float:
    """Pearson correlation; NaN where one of the two is constant.

    Example:
        >>> round(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 7.0])), 3)
        0.993
    """
    a, b = a.double(), b.double()
    if (a == a[:1]).all() or (b == b[:1]).all():
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b / (a.norm() * b.norm())).clamp(-1, 1))


def relative_distance(a: Float[Tensor, " weights"], b: Float[Tensor, " weights"]) -> float:
    """||a - b|| in units of the mean of ||a|| and ||b||; 0 between zeros, at most 2.

    Example:
        >>> relative_distance(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))   # 5 / 3.5
        1.428...
    """
    a, b = a.double(), b.double()
    return float(2 * (a - b).norm() / (a.norm() + b.norm())) if a.any() or b.any() else 0.0


def disagreement(a: Predictions, b: Predictions) -> float:
    """Share of examples (labels) on which predictions differ; for regression the RMS difference."""
    if a.task == "regression":
        return rmse(a.mean, b.mean)
    first, other = (
        each.probs.argmax(1) if each.task == "classification" else each.probs > 0.5
        for each in (a, b)
    )
    return float((first != other).double().mean())


def _compared(
    retrain: Retraining,
    layer: str,
    found: list[tuple[Named, Predictions]],
    varying: Tensor | None,
) -> LayerDiagnosis:
    names, own = list(found[0][0]), weights_of(retrain.model)
    given = {name: own[name].cpu() for name in names}
    flat = [_flat(each) for each, _ in found]
    moved = [] if varying is None else [_flat(each, varying) for each, _ in found]
    predictions = [each for _, each in found]
    return LayerDiagnosis(
        name=layer,
        names=tuple(names),
        shapes=tuple(tuple(each.shape) for each in given.values()),
        where=selector_of(retrain.model, layer, names),
        scores=tuple(_score(each) for each in predictions),
        nlls=tuple(mean_nll(each.log_prob) for each in predictions),
        correlations=tuple(pearson(a, b) for a, b in combinations(flat, 2)),
        varying_correlations=tuple(pearson(a, b) for a, b in combinations(moved, 2)),
        correlations_with_given=tuple(pearson(each, _flat(given)) for each in flat),
        distances=tuple(relative_distance(a, b) for a, b in combinations(flat, 2)),
        distances_to_given=tuple(relative_distance(each, _flat(given)) for each in flat),
        disagreements=tuple(disagreement(a, b) for a, b in combinations(predictions, 2)),
    )


def _score(one: Predictions) -> float:
    if one.task == "regression":
        return rmse(one.mean, one.target)
    return (accuracy if one.task == "classification" else label_accuracy)(one.probs, one.target)


def _flat(weights: Named, columns: Tensor | None = None) -> Float[Tensor, " weights"]:
    """All numbers in a row; of matrices only the columns given."""
    kept = [w if columns is None or w.ndim < 2 else w[:, columns] for w in weights.values()]
    return torch.cat([each.flatten() for each in kept])


def _plain(value: Any) -> Any:
    """Lists for tuples, None for what is not finite."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
