"""torchbayesian 0.2 by its README: wrap the network, add its exact KL over N."""

import torchbayesian.bnn as bnn
from job import Job, Predict, averaged, descend
from torch.nn import functional as F


def vi(job: Job) -> Predict:
    """Every parameter becomes a Gaussian with the prior N(0, 1)."""
    net = bnn.BayesianModule(job.net()).train()
    descend(
        job,
        lambda x, y: F.cross_entropy(net(x), y) + net.kl_divergence() / job.num_data,
        net.parameters(),
    )
    return averaged(net.eval(), job.num_samples)
