"""Learning that goes on after the fit, from data that arrive: `resume(posterior, example)`."""

from bayesify.core.errors import OptionError
from bayesify.core.options import from_json
from bayesify.core.types import Inputs
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.method import Method, StreamRun


def resume(posterior: WeightPosterior, example: Inputs) -> StreamRun:
    """Go on learning where a fitted (or loaded) posterior ended.

    The posterior itself stays as it is; `run.posterior()` gives the newer ones.

    Args:
        posterior: Fitted by a method that can learn from a stream (BALI).
        example: A small batch of inputs, from which the layers are read; nothing is learnt of it.

    Returns:
        A run with `update(inputs, target, forgetting=...)`, `posterior()`, `state_dict()` and
        `load_state_dict(state)`.

    Raises:
        OptionError: the posterior's method cannot learn from a stream.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> method = bayesify.BALI(epochs=1, min_steps=1)
        >>> run = resume(bayesify.fit(torch.nn.Linear(4, 3), (x, y), method), x[:2])
        >>> sorted(run.update(x[:8], y[:8], forgetting=0.1))
        ['loss', 'rolled_back']
    """
    method = from_json(posterior.record.options) if posterior.record else None
    if not isinstance(method, Method):
        raise OptionError(
            f"resume: expected a posterior of a method that can learn from a stream (BALI), got "
            f"one of {type(method).__name__ if method else 'no recorded method'}; fit it by one."
        )
    return method.resume(posterior, example)
