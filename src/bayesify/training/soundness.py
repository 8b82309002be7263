"""That a fitted posterior is finite, and no wider than can mean anything.

Training that diverges without a loss that is not finite ends here: a posterior that predicts
infinity, or with a standard deviation of `ABSURD` times the largest target, for inputs that it was
trained on, says nothing. A fit that knows nothing predicts with about the targets' own spread, and
noise in all layers of a deep network with ten times that, so the bound is far from both.
"""

import torch

from bayesify.core.batches import rows
from bayesify.core.errors import DivergenceError
from bayesify.core.types import Named
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.problem import Problem

ABSURD = 1000.0
EXAMPLES = 16
SAMPLES = 4


@torch.no_grad()
def check_sound(posterior: Posterior, problem: Problem) -> None:
    """Look at the numbers of a posterior, and at its predictions of a few training examples.

    Args:
        posterior: What has been fitted.
        problem: On what; the first batch that it gives is looked at.

    Raises:
        DivergenceError: a number of the distribution, of the likelihood or of a prediction is not
            finite; or the median of the predictive standard deviations is above `ABSURD` times the
            largest target (for classes and labels, that of the logits above `ABSURD` nats).
    """
    q = posterior.q.state_dict() if isinstance(posterior, WeightPosterior) else posterior.point()
    _check_finite(q, "weights")
    _check_finite(posterior.likelihood.state_dict(), "likelihood")
    inputs, target = next(iter(problem.data.batches()))
    few = rows(inputs, slice(EXAMPLES)) if len(target) > EXAMPLES else inputs
    outputs = posterior.outputs(few, num_samples=SAMPLES)
    _check_finite({"outputs": outputs}, "predictions")
    predicted = posterior.predictive(few, outputs).summary()
    _check_finite(predicted, "predictions")
    if "variance" in predicted:
        spread, unit = predicted["variance"].sqrt(), target.abs().max().item()
    else:  # of logits, in nats
        spread, unit = outputs.float().std(0, correction=0), 1.0
    typical = spread.median().item()
    if unit and typical > ABSURD * unit:
        how = (
            f"it predicts with a standard deviation of {typical:.3g} (a median), where the largest "
            f"target is {unit:.3g}"
            if "variance" in predicted
            else f"its logits vary by {typical:.3g} nats from sample to sample (a median)"
        )
        raise DivergenceError(
            f"the posterior is absurdly wide: on inputs that it was trained on {how}. {ADVICE}"
        )


ADVICE = (
    "Standardise inputs and targets and look for extreme values; then lower the learning rate, "
    "make the prior narrower (a smaller prior_scale, a larger prior_precision), or give validation "
    "examples to a method that chooses the size of its noise on them."
)


def _check_finite(named: Named, what: str) -> None:
    for name, each in named.items():
        if not bool(torch.isfinite(each).all()):  # whole numbers always are
            bad = int((~torch.isfinite(each)).sum())
            raise DivergenceError(
                f"the fit ended with a posterior that is not finite: {bad} of {each.numel()} "
                f"numbers of its {what} ({name}) are NaN or infinite. {ADVICE}"
            )
