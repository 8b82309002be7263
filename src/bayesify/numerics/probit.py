"""Logits that are damped by their variance, in place of an average over samples: the probit rule.

    p(y | x) ~ likelihood of f = m / sqrt(1 + pi v / 8)

for a logit of mean m and variance v. Source: MacKay 1992, Neural Computation 4(5), for one logit,
whose averaged sigmoid it approximates to .02; for many classes, logit by logit, Daxberger et al.
2021, arXiv 2106.14806, appendix B.3: what laplace-torch predicts with by default. For many classes
it is no approximation of the average but a rule of its own, which leaves out how logits move
together. On trained networks it was the better predictive of the two (benchmarks/peers/README.md).
"""

import math

from jaxtyping import Float
from torch import Tensor


def damped(mean: Float[Tensor, "..."], variance: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Logits m / sqrt(1 + pi v / 8), whose sigmoid is nearly the average of sigmoids over N(m, v).

    Example:
        >>> damped(Tensor([2.0]), Tensor([8 / math.pi]))
        tensor([1.4142])
    """
    return mean / (1 + math.pi / 8 * variance).sqrt()
