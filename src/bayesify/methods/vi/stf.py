"""STF: spatial-temporal fusion, a Bayesian first layer on a trained network.

Source: Lei et al. 2021, arXiv 2112.06281 (abstract: train the whole network, then make the first
layer Bayesian by stochastic variational inference, all other layers fixed).

    phase 1    (w1*, th*) = argmin of the MAP loss over all weights
    phase 2    mean-field VI (`methods/vi/mean_field.py`) over w1 alone, th* frozen

So STF is mean-field VI restricted to the layer that runs first, and nothing more: read that file
for the equations. Completions of ours, not the paper's: the posterior family, prior, start,
temperature and rates, which were chosen on validation data (benchmarks/README.md).
Cost: 2 |w1| parameters; about 2/3 of an ordinary training step; S forward passes to predict.
"""

from dataclasses import dataclass

from bayesify.core.options import ByTask, option
from bayesify.core.types import Where
from bayesify.methods.vi.mean_field import MeanFieldVI
from bayesify.training.method import PRETRAIN_HELP, Pretrain
from bayesify.weights.select import first_layer


@dataclass(frozen=True)
class STF(MeanFieldVI):
    """Bayesian first layer on a trained network.

    Example:
        >>> import torch, bayesify
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> method = STF(pretrain=bayesify.MAP(epochs=1), epochs=1)
        >>> posterior = bayesify.fit(net, (x, y), method)
        >>> posterior.q.names, posterior.trainable_parameters
        (['0.weight', '0.bias'], 80)
    """

    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    where: Where = option(first_layer, help="which weights are random")
    temperatures = ByTask(regression=1.0, classes=1.0)
