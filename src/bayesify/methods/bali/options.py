"""The options of layerwise learning that its run reads, and the widths that follow the task."""

from dataclasses import dataclass

from bayesify.core.options import option


@dataclass(frozen=True)
class LayerwiseOptions:
    """What the run reads of its method's options."""

    rate: float = option(
        0.2,
        help="forgetting rate rho of the natural parameters, which is the learning rate",
        above=0,
        at_most=1,
    )
    final_rate: float = option(
        0.02, help="forgetting rate at the end of its cosine, at most rate", above=0, at_most=1
    )
    warmup: int = option(50, help="steps over which the rate rises from zero", at_least=0)
    cap: float = option(5.0, help="largest move of a pseudo-target (trust region)", above=0)
    refresh: int = option(1, help="steps between two factorisations of P and F", at_least=1)
    noise_covariance: float | None = option(
        None, help="v of a fixed V = v I for all layers; none: V is the inverse Fisher", above=0
    )
    bound_output: bool = option(
        False, help="whether a softmax output has V = 2 I, which bounds its curvature"
    )
    forward_noise: bool = option(
        True, help="whether forward passes in training draw noise, each example its own"
    )
    evidence: bool = option(False, help="whether tau follows the evidence, layer by layer")
    forgetting: float = option(
        0.05, help="share of the past that an update from a stream forgets", above=0, at_most=1
    )
    rest_lr: float = option(3e-3, help="initial learning rate of those weights", above=0)


@dataclass(frozen=True)
class Scales:
    """The three numbers that set how wide the posterior is; see `BALI`."""

    prior_precision: float
    damping: float
    temperature: float
