"""The distribution of y given x, averaged over weights, and what can be asked of it.

Definitions, once for the whole library, computed in float32 at least. With S weight samples w_s:

    predictive           p(y|x) = 1/S sum_s p(y|x, w_s)                  (mean of probabilities)
    entropy              H[p(y|x)]                                       total, in nats
    aleatoric            1/S sum_s H[p(y|x, w_s)]                        expected entropy
    mutual information   entropy - aleatoric >= 0                        epistemic (BALD)

Class probabilities may be averaged otherwise, by logits `damped` that are given beside the samples
(the probit rule of `posteriors/weight.py`): then these are of the predictive, and so of its
log_prob and entropy, while the aleatoric part and mutual information stay those of the samples.
For regression the same split is made with variances: variance = aleatoric + epistemic.
Source of the split: Depeweg et al. 2018, arXiv 1710.07283, eqs. 1-3.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.errors import OptionError
from bayesify.core.types import Named
from bayesify.numerics.crps import mixture_crps
from bayesify.numerics.noise import widened
from bayesify.numerics.softmax import entropy, log_softmax


class Predictive(ABC):
    """p(y|x) for a batch of B inputs, as a mixture over S weight samples."""

    task: ClassVar[str]

    def __post_init__(self) -> None:
        for name, each in list(vars(self).items()):
            if isinstance(each, Tensor):
                object.__setattr__(self, name, widened(each))

    @abstractmethod
    def log_prob(self, target: Tensor) -> Tensor:
        """Log density of `target` under the averaged predictive, nats per example, shape (B,)."""

    @abstractmethod
    def summary(self) -> Named:
        """What evaluation keeps of each example: tensors with leading axis B, by name."""

    def scores(self, target: Tensor) -> Named:
        """What evaluation keeps of each example and its target: `log_prob` (B,), maybe more."""
        return {"log_prob": self.log_prob(target)}


def mixture_log_prob(log_prob: Float[Tensor, "samples *batch"]) -> Float[Tensor, "*batch"]:
    """log(1/S sum_s exp(log_prob_s)), stable."""
    return torch.logsumexp(log_prob, 0) - math.log(len(log_prob))


@dataclass(frozen=True)
class ClassPredictive(Predictive):
    """Categorical predictive. Holds the logits of every sample.

    Args:
        logits: (S, B, C), or (S, B, C, *positions) for segmentation-like outputs; then every
            position is a categorical variable of its own.
        logit_temperature: Divides the log of the *averaged* probabilities before they are
            normalised again (temperature scaling, Guo et al. 2017, arXiv 1706.04599, pooled
            before it is calibrated). 1 leaves the predictive as it is.
        damped: (B, C, ...), logits whose softmax stands for the average over samples; None: the
            mean of probabilities.

    Example:
        >>> predictive = ClassPredictive(torch.tensor([[[9.0, -9.0]], [[-9.0, 9.0]]]))
        >>> predictive.probs.tolist()
        [[0.5, 0.5]]
        >>> round(predictive.mutual_information().item(), 3)      # ln 2
        0.693
    """

    logits: Float[Tensor, "samples batch classes *positions"]
    logit_temperature: float = 1.0
    damped: Float[Tensor, "batch classes *positions"] | None = None
    task: ClassVar[str] = "classification"

    @property
    def log_probs(self) -> Float[Tensor, "batch classes *positions"]:
        """Log of the averaged probabilities."""
        mixed = _mixed(self.logits, self.damped)
        return self._tempered(mixture_log_prob(log_softmax(mixed, 2)))

    @property
    def probs(self) -> Float[Tensor, "batch classes *positions"]:
        """Mean over samples of softmax, never softmax of the mean; softmax of what is `damped`."""
        return self.log_probs.exp()

    def to(self, *where: Any) -> Self:
        """With its tensors moved or cast; arguments as of `torch.Tensor.to`."""
        damped = None if self.damped is None else self.damped.to(*where)
        return replace(self, logits=self.logits.to(*where), damped=damped)

    def log_prob(
        self, target: Integer[Tensor, "batch *positions"] | Bool[Tensor, "batch *positions"]
    ) -> Float[Tensor, "batch *positions"]:
        """Log probability of the class indices `target`, nats, per example (and position)."""
        return self.log_probs.gather(1, target.long().unsqueeze(1)).squeeze(1)

    def log_odds(
        self, target: Integer[Tensor, "batch *positions"] | Bool[Tensor, "batch *positions"]
    ) -> Float[Tensor, "batch *positions"]:
        """log(p / (1 - p)) of the probability of `target`: it grows on where p rounds to 1."""
        index = target.long().unsqueeze(1)
        others = self.log_probs.scatter(1, index, -torch.inf).logsumexp(1)
        return self.log_prob(target) - others

    def entropy(self) -> Float[Tensor, "batch *positions"]:
        """Entropy of the averaged predictive, nats."""
        return entropy(self.log_probs, 1)

    def aleatoric(self) -> Float[Tensor, "batch *positions"]:
        """Mean over samples of each sample's entropy, nats."""
        return entropy(log_softmax(self.logits, 2), 2).mean(0)

    def mutual_information(self) -> Float[Tensor, "batch *positions"]:
        """Mutual information of y and the weights, nats: what more data could remove.

        Of the samples, whatever is `damped` and before any `logit_temperature`, neither of which is
        a statement about the weights. Exactly 0 for a single sample, where rounding would leave a
        difference.
        """
        return _mutual_information(log_softmax(self.logits, 2))

    def summary(self) -> Named:
        """`probs` (B, C, ...), `entropy` and `mutual_information` (B, ...)."""
        each = log_softmax(self.logits, 2)
        pooled = self._tempered(mixture_log_prob(each))
        log_probs = pooled if self.damped is None else self.log_probs
        return {
            "probs": log_probs.exp(),
            "entropy": entropy(log_probs, 1),
            "mutual_information": _mutual_information(each),
        }

    def _tempered(
        self, pooled: Float[Tensor, "batch classes *positions"]
    ) -> Float[Tensor, "batch classes *positions"]:
        if self.logit_temperature == 1.0:
            return pooled
        return log_softmax(pooled / self.logit_temperature, 1)


def _mixed(logits: Tensor, damped: Tensor | None) -> Tensor:
    """What p(y|x) is a mixture of: the logits of all samples, or one row of damped ones."""
    return logits if damped is None else damped[None]


def _mutual_information(log_probs: Float[Tensor, "samples batch classes ..."]) -> Tensor:
    if len(log_probs) == 1:
        return torch.zeros_like(log_probs[0, :, 0])
    total = entropy(mixture_log_prob(log_probs), 1)
    return (total - entropy(log_probs, 2).mean(0)).clamp_min(0)


@dataclass(frozen=True)
class MultiLabelPredictive(Predictive):
    """Independent yes/no labels given the weights. Holds the logits of every sample.

    Args:
        logits: (S, B, L), one per label.
        damped: (B, L), logits whose sigmoid stands for the average over samples; None: the mean of
            probabilities.

    Example:
        >>> MultiLabelPredictive(torch.zeros(4, 1, 2)).probs.tolist()
        [[0.5, 0.5]]
    """

    logits: Float[Tensor, "samples batch labels"]
    damped: Float[Tensor, "batch labels"] | None = None
    task: ClassVar[str] = "multilabel"

    @property
    def probs(self) -> Float[Tensor, "batch labels"]:
        """Mean over samples of the probability that each label is on, or that by `damped`."""
        return torch.sigmoid(_mixed(self.logits, self.damped)).mean(0)

    def log_prob(self, target: Shaped[Tensor, "batch labels"]) -> Float[Tensor, " batch"]:
        """Joint log probability of all labels of an example, nats."""
        mixed = _mixed(self.logits, self.damped)
        signed = torch.where(target > 0.5, mixed, -mixed)
        return mixture_log_prob(F.logsigmoid(signed).sum(-1))

    def entropy(self) -> Float[Tensor, " batch"]:
        """Sum over labels of the entropy of each averaged label, nats."""
        return _binary_entropy(self.probs).sum(-1)

    def aleatoric(self) -> Float[Tensor, " batch"]:
        """Sum over labels of the mean entropy, nats."""
        return _binary_entropy(torch.sigmoid(self.logits)).mean(0).sum(-1)

    def mutual_information(self) -> Float[Tensor, " batch"]:
        """Sum over labels of the mutual information of the label and the weights, nats.

        Of the samples, whatever is `damped`.
        """
        if len(self.logits) == 1:
            return torch.zeros_like(self.logits[0, :, 0])
        total = _binary_entropy(torch.sigmoid(self.logits).mean(0)).sum(-1)
        return (total - self.aleatoric()).clamp_min(0)

    def summary(self) -> Named:
        """`probs` (B, L), `entropy` and `mutual_information` (B,)."""
        return {
            "probs": self.probs,
            "entropy": self.entropy(),
            "mutual_information": self.mutual_information(),
        }


@dataclass(frozen=True)
class RegressionPredictive(Predictive):
    """Mixture of S Gaussians, or of S Student-t distributions, per output dimension.

    Args:
        loc: Mean of each sample, (S, B, D), in the units of the target.
        scale: Noise standard deviation of each sample, broadcastable to `loc`.
        degrees: None for normal noise; a number nu above 2 for Student-t noise with nu degrees of
            freedom *and the standard deviation* `scale`: no moment below depends on it.

    Raises:
        OptionError: when `degrees` is no finite number above 2.

    Example:
        >>> predictive = RegressionPredictive(torch.tensor([[[0.0]], [[2.0]]]), torch.ones(1))
        >>> predictive.mean.item(), predictive.variance.item()    # 1 noise + 1 between samples
        (1.0, 2.0)
    """

    loc: Float[Tensor, "samples batch dims"]
    scale: Float[Tensor, "..."]
    degrees: float | None = None
    task: ClassVar[str] = "regression"

    def __post_init__(self) -> None:
        check_degrees(self.degrees)
        super().__post_init__()

    @property
    def mean(self) -> Float[Tensor, "batch dims"]:
        """Mean of the mixture."""
        return self.loc.mean(0)

    @property
    def aleatoric(self) -> Float[Tensor, "batch dims"]:
        """Mean noise variance, in squared units of the target."""
        return self.scale.square().expand_as(self.loc).mean(0)

    @property
    def epistemic(self) -> Float[Tensor, "batch dims"]:
        """Variance of the samples' means, in squared units of the target."""
        return self.loc.var(0, unbiased=False)

    @property
    def variance(self) -> Float[Tensor, "batch dims"]:
        """Variance of the mixture: aleatoric + epistemic."""
        return self.aleatoric + self.epistemic

    def log_prob(self, target: Float[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
        """Joint log density of all dimensions of an example, nats.

        The dimensions are independent given the weights.
        """
        residual = (target.reshape(self.loc.shape[1:]) - self.loc) / self.scale
        density = _noise_log_density(residual, self.degrees) - self.scale.log()
        return mixture_log_prob(density.sum(-1))

    def cdf(self, value: Float[Tensor, "batch dims"]) -> Float[Tensor, "batch dims"]:
        """P(y <= value), per dimension.

        With `degrees` it is computed on the CPU, in double precision, and carries no gradient.
        """
        return _noise_cdf((value - self.loc) / self.scale, self.degrees).mean(0)

    def quantile(self, level: float) -> Float[Tensor, "batch dims"]:
        """The value below which the mixture holds the share `level` in (0, 1), per dimension.

        By bisection between the extreme quantiles of the components, which enclose it.

        Raises:
            OptionError: when `level` is not inside (0, 1).
        """
        if not 0 < level < 1:
            raise OptionError(f"level={level}: expected a share above 0 and below 1.")
        z = _noise_quantile(level, self.degrees)
        per_sample = self.loc + z * self.scale  # (S, B, D)
        low, high = per_sample.amin(0), per_sample.amax(0)
        for _ in range(60):  # halves the bracket beyond double precision
            middle = (low + high) / 2
            below = self.cdf(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def summary(self) -> Named:
        """`mean`, `variance` and `epistemic`, each (B, D)."""
        return {"mean": self.mean, "variance": self.variance, "epistemic": self.epistemic}

    def scores(self, target: Float[Tensor, "batch *dims"]) -> Named:
        """Scores of `target` under the exact mixture, per example or per dimension.

        Returns:
            `log_prob` (B,), nats; `crps` (B, D), the continuous ranked probability score, in the
            units of the target, 0 is best (see `bayesify.numerics.crps`); `pit` (B, D), the
            probability integral transform P(y <= target), uniform when the predictive is right.
        """
        each = target.reshape(self.loc.shape[1:]).to(self.loc)
        factor = 1.0 if self.degrees is None else _shrinkage(self.degrees)
        return {
            "log_prob": self.log_prob(target),
            "crps": mixture_crps(self.loc, factor * self.scale, each, self.degrees),
            "pit": self.cdf(each),
        }


def check_degrees(degrees: float | None) -> None:
    """Refuse degrees of freedom with which Student-t noise has no variance to match.

    Raises:
        OptionError: when `degrees` is neither None nor a finite number above 2.
    """
    number = isinstance(degrees, int | float) and 2 < degrees < math.inf
    if degrees is not None and not number:
        raise OptionError(
            f"degrees={degrees!r}: expected a finite number above 2 (Student-t noise has a "
            f"variance only there) or None; pass 4 for heavy tails, None for normal noise."
        )


# Noise of mean 0 and variance 1: normal, or with nu = `degrees` Student-t, shrunk by
# sqrt((nu - 2) / nu) to that variance. torch has no incomplete beta function, and scipy, which
# has, takes long to import: only those who ask for Student-t noise pay for it.


def _noise_log_density(z: Tensor, degrees: float | None) -> Tensor:
    if degrees is None:
        return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    from scipy.special import betaln

    # t^2 / nu = z^2 / (nu - 2), so that nu has left the normaliser but for the beta function
    constant = float(betaln(degrees / 2, 0.5)) + 0.5 * math.log(degrees - 2)
    return -0.5 * (degrees + 1) * torch.log1p(z.square() / (degrees - 2)) - constant


def _noise_cdf(z: Tensor, degrees: float | None) -> Tensor:
    if degrees is None:
        return torch.special.ndtr(z)
    from scipy.special import stdtr

    t = z.detach().cpu().double() / _shrinkage(degrees)
    return torch.as_tensor(stdtr(degrees, t.numpy())).to(z)


def _noise_quantile(level: float, degrees: float | None) -> float:
    if degrees is None:
        return torch.special.ndtri(torch.tensor(level, dtype=torch.float64)).item()
    from scipy.special import stdtrit

    return float(stdtrit(degrees, level)) * _shrinkage(degrees)


def _shrinkage(degrees: float) -> float:
    return math.sqrt((degrees - 2) / degrees)


def _binary_entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs) + torch.special.entr(1 - probs)
