"""All that a comparison measures of one fitted posterior on held-out data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bayesify.core.errors import UnsupportedModelError
from bayesify.data.examples import Examples, Splits
from bayesify.data.loading import Data, evenly, subset
from bayesify.evaluation.evaluate import Evaluation, evaluate
from bayesify.evaluation.findings import Findings
from bayesify.evaluation.predictions import OnBatch
from bayesify.experiments.aspects import Aspects
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.base import Posterior
from bayesify.training.method import Method


@dataclass(frozen=True)
class Judge:
    """What posteriors for the same data are judged by.

    Args:
        aspects: What is measured beside quality and foreign data. What does not apply to the data
            or to a posterior is left out.
        splits: The data.
        held_out: The part that is judged on.
        ood: Foreign data, None for none.
        num_samples: Weight samples.
        surrogate: Gives the posterior whose adversarial inputs are tried on all others, if any.
        tell: Hears what was left out, and why.
        on_batch: Hears how many inputs were predicted.
    """

    aspects: Aspects
    splits: Splits
    held_out: Examples
    ood: Examples | None
    num_samples: int
    surrogate: Callable[[], Posterior | None]
    tell: Callable[[str], None] = lambda text: None
    on_batch: OnBatch | None = None

    def __call__(self, posterior: Posterior) -> Evaluation:
        """The evaluation of one posterior."""
        aspects, splits = self.aspects, self.splits
        classes = splits.task == "classification"
        attacked = self._applies("attacks", classes, "they are measured on classes")
        corrupted = self._applies(
            "corruptions", classes and splits.is_image, "they are of images with classes"
        )
        record = posterior.record
        certifies = self._applies(
            "certificates",
            classes and record is not None and record.certifying is not None,
            "the network has seen all data; fit with certify_split=0.5",
        )
        surrogate = self.surrogate() if attacked else None
        judged = evaluate(
            posterior,
            self.held_out,
            ood=self.ood,
            members=self._members if "membership" in aspects else None,
            certifying=splits.train.plain() if certifies else None,
            attacks=aspects.options["attacks"] if attacked else None,
            surrogate=None if surrogate is posterior else surrogate,
            corruptions=aspects.options["corruptions"] if corrupted else None,
            num_samples=self.num_samples,
            target_scale=splits.target_scale,
            on_batch=self.on_batch,
        )
        return judged.joined(self._far_away(posterior)) if classes else judged

    @property
    def _members(self) -> Data:
        """As many training examples as there are others: more would be predicted in vain."""
        train = self.splits.train.plain()
        return subset(train, evenly(len(train), min(len(train), len(self.held_out))))

    def _applies(self, aspect: str, applies: bool, otherwise: str) -> bool:
        """Whether it is asked for and can be measured here; if not, that is told."""
        if aspect in self.aspects and not applies:
            self.tell(f"{aspect}: left out, {otherwise}.")
        return aspect in self.aspects and applies

    def _far_away(self, posterior: Posterior) -> Findings:
        from bayesify.evaluation.diagnosis.far_away import overconfidence

        if "far-away" not in self.aspects:
            return Findings()
        try:
            return overconfidence(posterior, self.held_out, num_samples=self.num_samples)
        except UnsupportedModelError as error:
            self.tell(f"far-away: left out, {error}")
            return Findings()

    def shadowed(
        self,
        build: Callable[[int], nn.Module],
        method: Method,
        likelihood: Likelihood,
        *,
        batch_size: int,
        device: str,
        out: Path,
    ) -> Findings:
        """The attack by shadow posteriors, where it is asked for; they are kept in `out`."""
        if "shadows" not in self.aspects or self.splits.task != "classification":
            return Findings()
        from bayesify.evaluation.privacy.shadow import shadow_attack

        options: Any = self.aspects.options["shadows"]
        return shadow_attack(
            build,
            method,
            self.splits.train.plain(),
            shadows=options,
            likelihood=likelihood,
            batch_size=batch_size,
            device=device,
            num_samples=self.num_samples,
            out=out,
            on_fit=lambda number: self.tell(f"shadow {number + 1} of {options.count} is fitted"),
        )
