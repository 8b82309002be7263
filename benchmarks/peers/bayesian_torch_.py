"""bayesian-torch 0.5 by its README: `dnn_to_bnn`, its KL over the batch size, a loop of samples.

Its KL is a mean over weights, so that the prior is nearly switched off: left as it is, because that
is what its users run.
"""

from typing import Any

from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss
from job import Job, Predict, averaged, descend, trained
from torch import nn
from torch.nn import functional as F

OPTIONS: dict[str, Any] = {
    "prior_mu": 0.0,
    "prior_sigma": 1.0,
    "posterior_mu_init": 0.0,
    "posterior_rho_init": -3.0,
    "type": "Reparameterization",
    "moped_enable": False,
    "moped_delta": 0.5,
}


def vi(job: Job) -> Predict:
    """From scratch."""
    return _fit(job, job.net(), OPTIONS, job.epochs)


def moped(job: Job) -> Predict:
    """Two thirds of the budget train the network, one third the Gaussians around it."""
    own = job.epochs // 3
    return _fit(job, trained(job, epochs=job.epochs - own), OPTIONS | {"moped_enable": True}, own)


def _fit(job: Job, net: nn.Module, options: dict[str, Any], epochs: int) -> Predict:
    dnn_to_bnn(net, options)
    net.train()
    descend(
        job,
        lambda x, y: F.cross_entropy(net(x), y) + get_kl_loss(net) / job.batch_size,
        net.parameters(),
        epochs=epochs,
    )
    return averaged(net.eval(), job.num_samples)
