"""posteriors 0.1 by its documentation: a log posterior per example, and a transform that moves it.

Scales start at e^-3: from its default of 1 a perceptron does not learn. The rate is constant: its
states and a schedule of torchopt do not go together without more code than a user would write.
"""

import torch
import torchopt
from job import Job, Predict
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

import posteriors

LOG_SCALE = -3.0


def vi(job: Job) -> Predict:
    """Diagonal Gaussians, the prior N(0, 1), samples at once by vmap."""
    net = job.net()

    def log_posterior(
        weights: dict[str, Tensor], batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        x, y = batch
        logits = functional_call(net, weights, (x,))
        prior = posteriors.diag_normal_log_prob(weights) / job.num_data
        return prior - F.cross_entropy(logits, y), logits

    transform = posteriors.vi.diag.build(
        log_posterior,
        torchopt.adam(lr=job.lr),
        temperature=1 / job.num_data,
        init_log_sds=LOG_SCALE,
    )
    state = transform.init(dict(net.named_parameters()))
    for _ in range(job.epochs):
        for batch in job.batches():
            state, _ = transform.update(state, batch)

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        weights = posteriors.vi.diag.sample(state, (job.num_samples,))
        logits = torch.func.vmap(lambda each: functional_call(net, each, (x,)))(weights)
        return logits.softmax(2).mean(0)  # (S, B, C) -> (B, C)

    return predict
