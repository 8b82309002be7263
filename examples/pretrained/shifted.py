"""A trained network meets another domain: Bella adapts it with few numbers and keeps it honest.

    python examples/pretrained/shifted.py

Digits stand for the source; blurred, noisy ones for the shifted domain, of which
300 images are labelled. For the same on a published ResNet-20 see benchmarks/bella_shift/run.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

import bayesify

digits = bayesify.data.splits("digits")
generator = torch.Generator().manual_seed(0)


def shifted(x: Tensor) -> Tensor:
    """Blurred, under noise."""
    x = 0.5 * x + 0.5 * F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x + 0.3 * torch.randn(x.shape, generator=generator)


def judged(posterior: bayesify.Posterior) -> str:
    """Accuracy and NLL on shifted test images."""
    predictive = posterior.predict(x_test)
    right = (predictive.probs.argmax(1) == y_test).float().mean()
    nll = -predictive.log_prob(y_test).mean()
    return f"accuracy {right:.3f}, NLL {nll:.3f}, {posterior.trainable_parameters:,} numbers learnt"


x, y = digits.train.batch(torch.arange(300))
x_test, y_test = digits.test.batch(torch.arange(len(digits.test)))
x, x_test = shifted(x), shifted(x_test)

net = bayesify.models.build("cnn", digits.input_shape, digits.num_outputs, seed=0)
source = bayesify.fit(net, digits.train, bayesify.MAP(epochs=15))
print("as it was trained:  ", judged(source))

net.load_state_dict(source.point())
dense = bayesify.MAP(epochs=20, lr=1e-3)
print("all weights, once:  ", judged(bayesify.fit(net, (x, y), dense, batch_size=16)))
bella = bayesify.Bella(pretrain=None, members=5, rank=2, epochs=20, lr=1e-2)
posterior = bayesify.fit(net, (x, y), bella, batch_size=16)
print("Bella, five members:", judged(posterior))
