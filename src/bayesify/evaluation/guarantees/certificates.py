"""Certificates: upper bounds on the risk of a posterior that hold with high probability.

    risk           L(Q) = E_{w ~ Q} P(argmax f(x; w) != y)           (Gibbs: of one random network)
    Seeger         kl(L_S(Q) || L(Q)) <= (KL(Q || P) + ln(2 sqrt(n) / delta)) / n

with probability at least 1 - delta over the n examples S, for all Q at once, if the prior P *and*
all weights that are not random are independent of S. So S is what `certify_split` has kept from the
training of the network, or data that neither has ever seen; everything else is refused. L_S(Q) is
bounded from m weight samples, at a price of its own. See `numerics/pac_bayes.py` for the bounds and
their sources; STF has the cheapest ones, since KL counts its first layer alone.

The bound is on the Gibbs risk. The majority vote of the samples has at most twice that risk; what
`predict` does, the average of probabilities, is usually better than both, but is not bounded here.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch

from bayesify.core.batches import split_batch, to_device
from bayesify.core.errors import DataError, OptionError, UnsupportedModelError
from bayesify.core.streams import stream
from bayesify.data.loading import Data, as_loader, subset
from bayesify.distributions.kl import has_density, kl_divergence
from bayesify.distributions.priors import Prior
from bayesify.evaluation.findings import Findings
from bayesify.likelihoods import Categorical
from bayesify.numerics.pac_bayes import (
    catoni_grid_bound,
    mcallester_bound,
    monte_carlo_bound,
    seeger_bound,
)
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.holdout import CertifyingPart, count, in_order


@dataclass(frozen=True)
class Certificate:
    """Bounds on the Gibbs risk, each of which holds with probability at least 1 - delta.

    Attributes:
        bound: By inversion of kl (Maurer's form of Seeger's bound): the one to quote.
        mcallester: McAllester's; never below `bound`.
        catoni: Catoni's, with a union over a fixed grid of lambda.
        sampled_risk: Share of wrong top classes over weight samples and certifying examples.
        gibbs_bound: What bounds the expectation of `sampled_risk` over weight samples from above.
        kl: KL(Q || P), nats.
        examples: n.
        num_samples: m, weight samples.
        delta: Chance that the examples or the samples mislead.
    """

    bound: float
    mcallester: float
    catoni: float
    sampled_risk: float
    gibbs_bound: float
    kl: float
    examples: int
    num_samples: int
    delta: float

    def findings(self) -> Findings:
        """For a record of results."""
        return Findings(
            {
                "certificate": self.bound,
                "certificate_mcallester": self.mcallester,
                "certificate_catoni": self.catoni,
                "gibbs_risk": self.sampled_risk,
                "certificate_kl": self.kl,
                "certificate_n": float(self.examples),
            }
        )

    def __str__(self) -> str:
        return (
            f"With probability {1 - self.delta:g} the networks of the posterior are wrong, on "
            f"average over them, in at most {100 * self.bound:.1f} % of cases (seen: "
            f"{100 * self.sampled_risk:.1f} % of {self.examples} examples; KL {self.kl:.1f} nats; "
            f"McAllester {100 * self.mcallester:.1f} %, Catoni {100 * self.catoni:.1f} %)."
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def certify(
    posterior: WeightPosterior,
    data: Data,
    *,
    delta: float = 0.05,
    prior: Prior | None = None,
    held_out: bool = False,
    num_samples: int = 1000,
    examples_per_sample: int = 100,
    batch_size: int = 256,
) -> Certificate:
    """Bound the risk of `posterior` from examples that its network and prior have not seen.

    Args:
        posterior: With a Gaussian over its random weights, fitted with `certify_split`; or any
            with a prior, where `held_out` is true.
        data: The training data as they were given to `fit`, of which the certifying part is found
            again; or that part; or, with `held_out`, any labelled data of the same kind.
        delta: Chance in (0, 1) that the certificate is wrong; half of it goes to the examples and
            half to the weight samples.
        prior: With `held_out`: a prior that is independent of `data`, instead of the posterior's.
        held_out: You vouch that neither the network (its pretraining included) nor the prior has
            seen `data`. Nobody can check that; the bound is void otherwise.
        num_samples: Weight samples m.
        examples_per_sample: On how many examples of its own each of them is judged, to save time:
            the bound pays for m, not for these.
        batch_size: For data that is no loader.

    Raises:
        DataError: the network or the prior has seen the data, or may have.
        OptionError: no prior is known, no categorical likelihood, or delta is out of bounds.
        UnsupportedModelError: KL(q || prior) has no closed form.

    Example:
        >>> import bayesify
        >>> x, y = torch.randn(200, 2), torch.arange(200) % 2
        >>> method = bayesify.STF(pretrain=bayesify.MAP(epochs=1), epochs=1, certify_split=0.5)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> certificate = certify(bayesify.fit(net, (x, y), method), (x, y))
        >>> certificate.examples, certificate.bound > certificate.sampled_risk
        (100, True)
    """
    if not 0 < delta < 1:
        raise OptionError(f"delta={delta}: expected a probability between 0 and 1, such as 0.05.")
    for name, value in (("num_samples", num_samples), ("examples_per_sample", examples_per_sample)):
        if type(value) is not int or value < 1:
            raise OptionError(f"{name}={value}: expected a whole number, at least 1.")
    if not isinstance(posterior, WeightPosterior):
        raise OptionError(
            f"certify: expected a posterior over weights, got {type(posterior).__name__}."
        )
    if not isinstance(posterior.likelihood, Categorical):
        raise OptionError(
            f"certify bounds the share of wrong classes: expected a categorical likelihood, got "
            f"{type(posterior.likelihood).__name__}."
        )
    seen_by_q_alone = _certifying(posterior, in_order(data), prior, held_out)
    prior = posterior.prior if prior is None else prior
    if prior is None:
        raise OptionError(
            "certify: expected a posterior that knows its prior, got none; fit with "
            "certify_split=0.5 (what is rescaled, recalibrated or replaced afterwards has lost its "
            "prior), or pass held_out=True and prior=, which must be independent of the data."
        )
    if not has_density(posterior.q):
        raise UnsupportedModelError(
            f"certify: expected a {type(posterior.q).__name__} with a density over all of its "
            f"weights, got one with weights that are shared or fixed, whose divergence from any "
            f"prior with a density is infinite."
        )
    with torch.no_grad():
        kl = kl_divergence(posterior.q, prior).item()
    risk = sampled_risk(
        posterior,
        seen_by_q_alone,
        num_samples=num_samples,
        examples_per_sample=examples_per_sample,
        batch_size=batch_size,
    )
    examples = count(seen_by_q_alone)
    gibbs = monte_carlo_bound(risk, num_samples, delta / 2)
    return Certificate(
        bound=seeger_bound(gibbs, kl, examples, delta / 2),
        mcallester=mcallester_bound(gibbs, kl, examples, delta / 2),
        catoni=catoni_grid_bound(gibbs, kl, examples, delta / 2),
        sampled_risk=risk,
        gibbs_bound=gibbs,
        kl=kl,
        examples=examples,
        num_samples=num_samples,
        delta=delta,
    )


def sampled_risk(
    posterior: WeightPosterior,
    data: Data,
    *,
    num_samples: int = 1000,
    examples_per_sample: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """Share of wrong top classes, over weight samples and examples; each pair counts alone.

    Args:
        posterior: Of classes.
        data: Labelled.
        num_samples: Weight samples m.
        examples_per_sample: How many examples each weight sample is judged on, drawn for it alone
            and with replacement, so that the m errors are independent and each has the risk on all
            of `data` as its mean. None, or as many as there are: all of them.
        batch_size: For data that is no loader; the result does not depend on it.
        seed: Of these examples, and of the weight samples that are judged on them.
    """
    size, generator = count(data), stream(seed, "certify")
    if examples_per_sample is None or examples_per_sample >= size:
        return _share_wrong(posterior, data, num_samples, batch_size, None)
    errors = 0.0
    for _ in range(num_samples):
        own = torch.randint(size, (examples_per_sample,), generator=generator)
        errors += _share_wrong(posterior, subset(data, own), 1, examples_per_sample, generator)
    return errors / num_samples


def _share_wrong(
    posterior: Posterior,
    data: Data,
    num_samples: int,
    batch_size: int,
    generator: torch.Generator | None,
) -> float:
    wrong, total = 0, 0
    with torch.no_grad():
        for batch in as_loader(data, batch_size=batch_size, shuffle=False):
            inputs, target = to_device(split_batch(batch), posterior.device)
            made = posterior.outputs(inputs, num_samples=num_samples, generator=generator)
            top = made.argmax(2)  # (S, B, ...)
            wrong += int((top != target).sum())
            total += top.numel()
    return wrong / total


def _certifying(
    posterior: WeightPosterior, data: Data, prior: Prior | None, held_out: bool
) -> Data:
    """The examples that may certify."""
    record = posterior.record
    if held_out:
        return data
    if prior is not None:
        raise DataError(
            "certify: a prior of your own may have seen the data; pass held_out=True to vouch "
            "that neither it nor the network has."
        )
    if record is None or record.certifying is None:
        raise DataError(
            "certify: the network was trained on the data of the fit, and so the bound would not "
            "hold on them; fit with certify_split=0.5, which keeps half of them from the network "
            "and the prior, or pass held_out=True with data that neither has ever seen."
        )
    return CertifyingPart.from_json(record.certifying).of(data)
