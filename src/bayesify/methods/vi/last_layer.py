"""Last-layer VI: Gaussians over the weights of the layer that runs last, the rest frozen.

Sources: a Bayesian linear model on learnt features, Snoek et al. 2015, arXiv 1502.05700, section 3;
by variational inference, Blundell et al. 2015, arXiv 1505.05424 (mean-field; Harrison et al. 2024,
arXiv 2404.11599, learn dense covariances and the features with them).

    features   h(x) of the network, trained first and then frozen
    q(W)       mean-field VI (`methods/vi/mean_field.py`) over the layer that maps h to the outputs

So it is mean-field VI restricted to the layer that runs last, as STF is to the first; read that
file for the equations. Prior, start, temperature and rates are ours.
Cost: 2 |W| parameters. A step is a forward pass of the network, and a gradient of one layer.
Prediction runs the network once for all samples, and the last layer S times: about the price of
the network itself.
"""

from dataclasses import dataclass

from bayesify.core.options import ByTask, option
from bayesify.core.types import Where
from bayesify.methods.vi.mean_field import MeanFieldVI
from bayesify.training.method import PRETRAIN_HELP, Pretrain
from bayesify.weights.select import last_layer


@dataclass(frozen=True)
class LastLayerVI(MeanFieldVI):
    """Bayesian last layer on a trained network.

    Example:
        >>> import torch, bayesify
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> method = LastLayerVI(pretrain=bayesify.MAP(epochs=1), epochs=1)
        >>> posterior = bayesify.fit(net, (x, y), method)
        >>> posterior.q.names, posterior.trainable_parameters
        (['2.weight', '2.bias'], 54)
    """

    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    where: Where = option(last_layer, help="which weights are random")
    temperatures = ByTask(regression=1.0, classes=0.1)
