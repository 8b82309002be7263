"""How gracefully a posterior fails on corrupted images: accuracy, NLL and calibration by severity.

    corrupted_m = mean over families and severities of m(corrupted data)

Every family and severity counts the same, as in the mean corruption error of Hendrycks and
Dietterich 2019, arXiv 1903.12261, section 4.2, but with no reference network to divide by; the
corruptions are theirs (see `corruptions.py`). That NLL and calibration be followed by severity is
from Ovadia et al. 2019, arXiv 1906.02530, section 4.2. A posterior that knows what it does not know
keeps both low while its accuracy falls.

Images are corrupted as they were taken, in [0, 1], and only then normalised.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesify.core.batches import split_batch
from bayesify.core.errors import DataError, OptionError, UnsupportedModelError
from bayesify.core.options import check_options, option
from bayesify.data.examples import Normalise, is_image_shape
from bayesify.data.loading import Data, evenly_spread
from bayesify.evaluation.findings import Findings
from bayesify.evaluation.metrics.scores import accuracy, ece, mean_nll
from bayesify.evaluation.predictions import OnBatch, Predictions, Predicts, collect
from bayesify.evaluation.shift.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    check_family,
    corrupt,
    families_for,
)

RANGE_TOLERANCE = 1e-3
"""How far rounding may take images out of [0, 1] on their way through `Normalise.inverse`."""


@dataclass(frozen=True)
class Corruptions:
    """Which corruptions, how strong, and on how many images.

    Example:
        >>> Corruptions(families=("gaussian_noise", "contrast"), severities=(1, 3, 5)).examples
        1000
    """

    families: tuple[str, ...] | None = option(
        None, help="names of the corruptions; none: all that fit the images"
    )
    severities: tuple[int, ...] = option(SEVERITIES, help="from 1, mild, to 5; increasing")
    examples: int | None = option(
        1000, help="images, spread evenly over the data; none: all", at_least=1
    )
    seed: int = option(0, help="of the noise")

    def __post_init__(self) -> None:
        check_options(self)
        named = CORRUPTIONS if self.families is None else self.families
        unknown = [each for each in named if each not in CORRUPTIONS]
        if unknown or not named or len(set(named)) < len(named):
            raise OptionError(
                f"Corruptions(families={self.families!r}): expected at least one name, each once, "
                f"of {', '.join(CORRUPTIONS)}."
            )
        given = self.severities if isinstance(self.severities, tuple) else ()
        if not given or given != tuple(each for each in SEVERITIES if each in given):
            raise OptionError(
                f"Corruptions(severities={self.severities!r}): expected whole numbers from 1 to 5, "
                f"at least one, increasing, as a tuple."
            )


def shift(
    posterior: Predicts,
    data: Data,
    corruptions: Corruptions = Corruptions(),
    *,
    normalise: Normalise | None,
    num_samples: int = 32,
    batch_size: int = 256,
    chunk_size: int | None = None,
    on_batch: OnBatch | None = None,
) -> Findings:
    """Predict clean and corrupted images with the same weight samples throughout, and measure.

    The chosen images stay in memory; they are corrupted batch by batch, the same for any cut.

    Args:
        posterior: Of a classifier of images.
        data: Held-out images (B, 1 or 3 channels, height, width) as the model sees them, with one
            class each: a loader, a data set, or tensors `(x, y)`. Of a loader, the data set is
            taken, in its own order.
        corruptions: Which, how strong, on how many images.
        normalise: The map from images in [0, 1] to what the model sees; None: it sees these.
        num_samples: Weight samples S.
        batch_size: Images predicted at once; the results do not depend on it.
        chunk_size: Weight samples evaluated at once; None: the posterior decides.
        on_batch: Called after every batch with the number of images it held: in all, `examples`
            times (1 + families times severities).

    Returns:
        Metrics `corrupted_accuracy`, `corrupted_nll` (nats per image) and `corrupted_ece` (15 bins,
        top label), means over families and severities; and the curve `corruption`: `severities`
        with 0 for clean, `examples`, `num_samples`, and `families`, each with its `accuracy`, `nll`
        and `ece` at these severities.

    Raises:
        DataError: no images with one class each, `normalise` is not the map they came through, or
            a true class has probability 0.
        OptionError: a family does nothing to images of so many channels.
        UnsupportedModelError: the posterior is of no classifier.

    Example:
        >>> import bayesify
        >>> digits = bayesify.data.splits("digits")
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> posterior = bayesify.fit(net, digits.train, bayesify.MAP(epochs=5), seed=0)
        >>> few = Corruptions(families=("contrast",), severities=(1, 5), examples=100)
        >>> found = shift(posterior, digits.test, few, normalise=digits.normalise)
        >>> found.curves["corruption"]["severities"]
        [0, 1, 5]
        >>> mild, strong = found.curves["corruption"]["families"]["contrast"]["nll"][1:]
        >>> mild < strong
        True
    """
    x, y = _chosen(data, corruptions.examples, batch_size)
    images = _raw(x, normalise)
    families = corruptions.families or families_for(images.shape[1])
    for name in families:
        check_family(name, images.shape[1])
    _check_classifier(posterior, x[:1], num_samples)

    def measured(name: str, severity: int) -> dict[str, float]:
        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, len(x), batch_size):
                part = slice(start, start + batch_size)
                if severity == 0:
                    yield x[part], y[part]
                    continue
                corrupted = corrupt(
                    images[part], name, severity, seed=corruptions.seed, start=start
                )
                yield (corrupted if normalise is None else normalise(corrupted)), y[part]

        return _measure(
            collect(
                posterior,
                batches(),
                num_samples=num_samples,
                chunk_size=chunk_size,
                on_batch=on_batch,
            )
        )

    clean = measured("", 0)
    found = {name: [measured(name, each) for each in corruptions.severities] for name in families}
    corrupted = [each for series in found.values() for each in series]
    return Findings(
        {f"corrupted_{m}": sum(each[m] for each in corrupted) / len(corrupted) for m in clean},
        {
            "corruption": {
                "severities": [0, *corruptions.severities],
                "examples": len(x),
                "num_samples": num_samples,
                "families": {
                    name: {m: [round(each[m], 6) for each in (clean, *series)] for m in clean}
                    for name, series in found.items()
                },
            }
        },
    )


def _check_classifier(posterior: Predicts, first: Tensor, num_samples: int) -> None:
    task = posterior.predict(first.to(posterior.device), num_samples=num_samples).task
    if task != "classification":
        raise UnsupportedModelError(
            f"expected a posterior of a classifier, got a {task} task; accuracy under corruption "
            f"is defined for one class an image."
        )


def _measure(predictions: Predictions) -> dict[str, float]:
    return {
        "accuracy": accuracy(predictions.probs, predictions.target),
        "nll": mean_nll(predictions.log_prob),
        "ece": ece(predictions.probs, predictions.target),
    }


def _chosen(data: Data, examples: int | None, batch_size: int) -> tuple[Tensor, Tensor]:
    """Images and classes of so many examples, spread evenly."""
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: expected at least 1.")
    loader, _ = evenly_spread(data, examples, batch_size=batch_size)
    pairs = [split_batch(batch) for batch in loader]
    for inputs, target in pairs:
        if not (isinstance(inputs, Tensor) and is_image_shape(inputs.shape[1:])):
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise DataError(
                f"expected images (B, 1 or 3 channels, height, width) to corrupt, got {got}."
            )
        if target.ndim != 1 or target.is_floating_point():
            raise DataError(
                f"expected one class an image, integers (B,), got targets of {target.dtype} "
                f"{tuple(target.shape)}."
            )
    x, y = (torch.cat(each).cpu() for each in zip(*pairs, strict=True))
    return x, y


def _raw(x: Tensor, normalise: Normalise | None) -> Tensor:
    """The images in [0, 1] that the model's inputs `x` were made from."""
    images = x if normalise is None else normalise.inverse(x)
    least, most = float(images.min()), float(images.max())
    if not (least >= -RANGE_TOLERANCE and most <= 1 + RANGE_TOLERANCE):
        raise DataError(
            f"expected inputs that are images in [0, 1] once `normalise` is undone, got values "
            f"from {least:.4g} to {most:.4g}; pass the `normalise` that these data came through."
        )
    return images.clamp(0, 1)
