"""How well a classifier stands up to adversarial inputs, as a curve over the size of the change.

For each eps, the inputs of FGSM and PGD (`attacks.py`), and of PGD on a *surrogate* where one is
given, are judged by the posterior's own predictions, with the same weight draws as the clean ones.

A posterior can look robust because its gradients are noisy and not because its predictions are.
Two checks are built in. Gradients average over many draws: few of them are warned about. And the
transfer attack takes the gradients of another model, say a MAP network: where it does more harm
than PGD on the posterior itself, the latter has failed, and its numbers mean little.

Source of both checks: Athalye et al. 2018, arXiv 1802.00420, sections 3.1 (signs of obfuscated
gradients) and 4 (randomised models).
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesify.core.batches import split_batch, to_device
from bayesify.core.errors import OptionError
from bayesify.core.options import check_options, option
from bayesify.core.streams import stream
from bayesify.data.loading import Data, evenly_spread
from bayesify.evaluation.findings import Findings
from bayesify.evaluation.predictions import OnBatch
from bayesify.evaluation.robustness.attacks import (
    NORMS,
    InputBox,
    check_input,
    fgsm,
    pgd,
    unit_ball,
)
from bayesify.evaluation.robustness.loss_gradient import PRECISIONS
from bayesify.posteriors.base import Posterior

ENOUGH_GRADIENT_SAMPLES = 10
"""With fewer weight draws in a gradient, a stochastic posterior seems more robust than it is."""


@dataclass(frozen=True)
class Attacks:
    """Which attacks are made.

    Example:
        >>> Attacks(eps=(0.1, 0.3), norm="l2", examples=100).steps
        10
    """

    eps: tuple[float, ...] = option(
        (2 / 255, 4 / 255, 8 / 255), help="radii of the ball, growing, in units of the box"
    )
    norm: str = option("linf", help="what is bounded: each number or the length", choices=NORMS)
    steps: int = option(10, help="gradient steps of PGD", at_least=1)
    restarts: int = option(1, help="random starts of PGD, of which the worst counts", at_least=1)
    gradient_samples: int = option(20, help="weight samples in each gradient", at_least=1)
    precision: str = option(
        "float32",
        help="of the gradients; bfloat16 is twice as fast where the hardware has it",
        choices=PRECISIONS,
    )
    examples: int | None = option(
        1000, help="examples attacked, evenly spread over the data; none: all", at_least=1
    )
    seed: int = option(0, help="seed of the random starts", at_least=0)

    def __post_init__(self) -> None:
        check_options(self)
        if not (self.examples is None or type(self.examples) is int):
            raise OptionError(f"Attacks(examples={self.examples!r}): expected a whole number.")
        growing = isinstance(self.eps, tuple) and all(
            low < high < math.inf for low, high in zip((0, *self.eps), self.eps, strict=False)
        )
        if not growing or not self.eps:
            raise OptionError(
                f"Attacks(eps={self.eps!r}): expected a tuple of growing finite numbers above 0, "
                f"such as (2/255, 8/255); the clean examples are always judged too."
            )


STANDARD = Attacks()
"""The attacks that are made where none are chosen."""


def robustness(
    posterior: Posterior,
    data: Data,
    attacks: Attacks = STANDARD,
    *,
    box: InputBox | None = None,
    num_samples: int = 32,
    batch_size: int = 32,
    chunk_size: int | None = None,
    surrogate: Posterior | None = None,
    on_batch: OnBatch | None = None,
) -> Findings:
    """Accuracy and NLL of a classification posterior under attack.

    Args:
        posterior: What is attacked and judged.
        data: Held-out data; see `evenly_spread` for what of them is used.
        attacks: Which attacks.
        box: Which inputs exist and the units of eps, e.g. `InputBox.of(splits.normalise)`; None:
            all inputs exist, and eps is in the units that the model sees.
        num_samples: Weight samples S of the predictions that are judged.
        batch_size: Examples attacked at once; the results do not depend on it.
        chunk_size: Weight samples evaluated at once; None: the posterior decides.
        surrogate: Another posterior for the same task whose adversarial inputs are tried as well.
        on_batch: Called after every batch with the number of inputs it held.

    Returns:
        Metrics at the largest eps: `attack_eps`; `accuracy` and `nll` (nats per example) after
        `fgsm_`, `pgd_` and `transfer_`; `worst_accuracy`, the share right under all of them. The
        curve `robustness` holds the settings and accuracy and NLL for every eps, 0 first.

    Raises:
        OptionError: when a posterior is no classifier.
        DataError: when the data cannot be attacked; see `evenly_spread` and `pgd`.

    Warns:
        UserWarning: when few gradient samples make a stochastic posterior seem robust.

    Example:
        >>> from bayesify import MAP, fit
        >>> x = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]])
        >>> data = x, (x[:, 0] > 0).long()
        >>> posterior = fit(torch.nn.Linear(1, 2), data, MAP(epochs=200, lr=0.1))
        >>> found = robustness(posterior, data, Attacks(eps=(0.1, 0.8)))
        >>> found.curves["robustness"]["attacks"]["pgd"]["accuracy"]  # at 0, .1 and .8
        [1.0, 1.0, 0.5]
    """
    for each in (posterior, surrogate):
        if each is not None and each.likelihood.task != "classification":
            raise OptionError(
                f"robustness is measured by accuracy: expected a classification posterior, got "
                f"{each.likelihood.task}; for other tasks call `fgsm` or `pgd` themselves."
            )
    loader, count = evenly_spread(data, attacks.examples, batch_size=batch_size)
    adversary = _Adversary(posterior, surrogate, attacks, box, chunk_size)
    seeds = torch.randint(2**31, (count,), generator=stream(attacks.seed, "attack"))
    radii = [(name, eps) for name in adversary.names for eps in attacks.eps]
    marks: dict[tuple[str, float], list[Marks]] = {key: [] for key in [CLEAN, *radii]}
    done = 0
    for batch in loader:
        x, y = to_device(split_batch(batch), posterior.device)
        check_input(x, box)
        x = cast(Tensor, x)
        if not done:
            _warn_of_noisy_gradients(posterior, x, attacks)
        start = starts(seeds[done : done + len(x)], tuple(x.shape[1:]), attacks)
        for key in marks:
            tried = x if key == CLEAN else adversary.attack(*key, x, y, start)
            marks[key].append(_judge(posterior, tried, y, num_samples, chunk_size))
        done += len(x)
        if on_batch is not None:
            on_batch(len(x))
    every = {key: Marks.joined(rows) for key, rows in marks.items()}
    settings = {"num_samples": num_samples, "examples": done}
    return _findings(every, adversary.names, attacks, settings)


def starts(
    seeds: Int[Tensor, " batch"], shape: tuple[int, ...], attacks: Attacks
) -> Float[Tensor, "restarts batch ..."]:
    """Random starts of examples of a shape; those of an example depend on its own seed alone."""
    each = [
        unit_ball((attacks.restarts, *shape), attacks.norm, stream(seed, "start"))
        for seed in seeds.tolist()
    ]
    return torch.stack(each, 1)


CLEAN = ("clean", 0.0)
"""Where the marks of the examples themselves are kept."""


@dataclass(frozen=True)
class Marks:
    """Of every example (and position), on the CPU: whether it is right, and its NLL in nats."""

    right: Bool[Tensor, " examples"]
    nll: Float[Tensor, " examples"]

    @classmethod
    def joined(cls, rows: "list[Marks]") -> "Marks":
        """Several batches as one."""
        return cls(torch.cat([row.right for row in rows]), torch.cat([row.nll for row in rows]))

    @property
    def accuracy(self) -> float:
        """Share right."""
        return float(self.right.double().mean())

    @property
    def mean_nll(self) -> float:
        """In nats per example."""
        return float(self.nll.mean())


@dataclass(frozen=True)
class _Adversary:
    posterior: Posterior
    surrogate: Posterior | None
    attacks: Attacks
    box: InputBox | None
    chunk_size: int | None

    @property
    def names(self) -> tuple[str, ...]:
        return ("fgsm", "pgd") if self.surrogate is None else ("fgsm", "pgd", "transfer")

    def attack(self, name: str, eps: float, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        chosen = self.attacks
        passing: dict[str, Any] = {
            "eps": eps,
            "norm": chosen.norm,
            "box": self.box,
            "num_samples": chosen.gradient_samples,
            "chunk_size": self.chunk_size,
            "precision": chosen.precision,
        }
        if name == "fgsm":
            return fgsm(self.posterior, x, y, **passing)
        passing |= {"steps": chosen.steps, "restarts": chosen.restarts, "start": start}
        deceived = self.surrogate if name == "transfer" else None
        return pgd(deceived or self.posterior, x, y, **passing)


def _judge(
    posterior: Posterior, x: Tensor, y: Tensor, num_samples: int, chunk_size: int | None
) -> Marks:
    predictive = posterior.predict(x, num_samples=num_samples, chunk_size=chunk_size)
    probs = predictive.summary()["probs"]
    posterior.likelihood.check(probs, y)
    right, nll = probs.argmax(1) == y, -predictive.log_prob(y)
    return Marks(right.flatten().cpu(), nll.flatten().double().cpu())


def _findings(
    every: dict[tuple[str, float], Marks],
    names: tuple[str, ...],
    attacks: Attacks,
    settings: dict[str, Any],
) -> Findings:
    largest = attacks.eps[-1]
    metrics = {"attack_eps": float(largest)}
    for name in names:
        metrics[f"{name}_accuracy"] = every[name, largest].accuracy
        metrics[f"{name}_nll"] = every[name, largest].mean_nll
    always = torch.stack([every[name, largest].right for name in names]).all(0)
    metrics["worst_accuracy"] = float(always.double().mean())
    marks = {name: [every[CLEAN], *(every[name, eps] for eps in attacks.eps)] for name in names}
    curve = {
        "norm": attacks.norm,
        "steps": attacks.steps,
        "restarts": attacks.restarts,
        "gradient_samples": attacks.gradient_samples,
        "precision": attacks.precision,
        **settings,
        "eps": [0.0, *map(float, attacks.eps)],
        "attacks": {
            name: {
                "accuracy": [each.accuracy for each in row],
                "nll": [each.mean_nll for each in row],
            }
            for name, row in marks.items()
        },
    }
    return Findings(metrics, {"robustness": curve})


def _warn_of_noisy_gradients(posterior: Posterior, x: Tensor, attacks: Attacks) -> None:
    if attacks.gradient_samples >= ENOUGH_GRADIENT_SAMPLES:
        return
    with torch.no_grad():
        two, three = (len(posterior.outputs(x[:1], num_samples=n)) for n in (2, 3))
    if two != three:  # it draws, rather than having a fixed number of members
        warnings.warn(
            f"gradient_samples={attacks.gradient_samples} of a stochastic posterior: such "
            f"gradients are noisy and the robustness found is inflated; use at least "
            f"{ENOUGH_GRADIENT_SAMPLES}, better 20.",
            UserWarning,
            stacklevel=3,
        )
