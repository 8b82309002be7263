"""Where a fit begins: is the network trained already, and how large is the noise around it?

With `pretrain="auto"` a network is trained first, by MAP, unless it is far better than the best
constant prediction: class frequencies, or the mean of the targets. Both errors are measured on at
most some `EXAMPLES` training examples, with the network in eval mode. "Far better" is at most
`FAR_BETTER` times the constant's error (NLL, or root mean squared error). No network with hidden
layers as torch starts them got there without training, of 8,000; of linear maps of a single input,
13 (classes) and 46 (numbers) of 1,000 did (docs/methods/map.md).

A likelihood with learnt numbers of its own (a Gaussian's noise) starts at those that fit the
network, where that is what the fit goes on from.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesify.core.errors import OptionError
from bayesify.core.modes import evaluating, seeded
from bayesify.core.types import Inputs
from bayesify.tracing.trace import call
from bayesify.training.method import Method
from bayesify.training.problem import Problem

AUTO = "auto"

FAR_BETTER = 0.5
BETTER = 0.8
"""From here on one may have thought that the network is trained, and is told that it is not."""

EXAMPLES = 1000
EXAMPLES_FOR_NOISE = 10_000
MOST_NUMBERS = 2**26
"""Of all outputs that are held at once, 256 MB: those of language models are large."""

log = logging.getLogger("bayesify")


@dataclass(frozen=True)
class Start:
    """Where a fit began, for its record.

    Attributes:
        pretrained: Whether the network was trained before the method's own phase.
        said: Why, and from where the noise starts, in a sentence or two; "" where there was
            nothing to decide.
        network: Error of the network given, on training data; None where nobody had to know.
        constant: That of the best constant prediction.
        error: What these measure: "NLL" in nats, or "root mean squared error".
        noise: Which examples the likelihood's noise was fitted to, "validation" or "training";
            None where it started as given.
    """

    pretrained: bool
    said: str = ""
    network: float | None = None
    constant: float | None = None
    error: str | None = None
    noise: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What is recorded, as plain values by name."""
        return asdict(self)


def phases_of(method: Any) -> list[Method]:
    """The method and those that it names to train the network before it, from last to first.

    Raises:
        OptionError: one of them is no method.
    """
    phases: list[Method] = []
    while method is not None and method != AUTO:
        if isinstance(method, type) or not isinstance(method, Method):
            raise OptionError(
                f"method: expected an instance such as bayesify.STF(), got {method!r}; "
                f"call the class to make one, and let one of your own inherit from bayesify.Method."
            )
        phases.append(method)
        method = method.pretrain
    return phases


def begun(
    phases: Sequence[Method], problem: Problem, *, kept_apart: bool
) -> tuple[list[Method], Start]:
    """All phases, from last to first, with what "auto" comes to; and the noise set, in place.

    Args:
        phases: Of `phases_of`.
        problem: What the first of the phases to run sees. The network is left as it is.
        kept_apart: Whether a part of the data is kept from training the network, which must then
            be trained here.
    """
    first = phases[-1]
    judged = None
    if first.pretrain == AUTO and not kept_apart:
        judged = _judged(problem)
        phases = list(phases) if judged.far_better else [*phases, *phases_of(first.before())]
    elif first.pretrain == AUTO:
        phases = [*phases, *phases_of(first.before())]
    start = Start(pretrained=len(phases) > 1)
    if first.pretrain == AUTO:
        start = replace(
            start, said=_reason(first, judged), **({} if judged is None else judged.numbers)
        )
        level = logging.WARNING if judged is not None and judged.doubtful else logging.INFO
        log.log(level, start.said)
    if noise := _noise_fitted_(phases[-1], problem, judged):
        said = f"The likelihood's noise starts at the network's residuals on {noise} examples."
        start = replace(start, noise=noise, said=f"{start.said} {said}".strip())
        log.info(said)
    return list(phases), start


@dataclass(frozen=True)
class _Judged:
    """How a network does beside a constant; no errors where the likelihood does not know."""

    network: float | None
    constant: float | None
    error: str

    @property
    def ratio(self) -> float:
        """Of the errors; infinite or not a number where nothing can be said."""
        if self.network is None or not self.constant:
            return math.inf
        return self.network / self.constant

    @property
    def far_better(self) -> bool:
        return self.ratio <= FAR_BETTER

    @property
    def doubtful(self) -> bool:
        return FAR_BETTER < self.ratio <= BETTER

    @property
    def numbers(self) -> dict[str, Any]:
        """Of a `Start`; JSON has no infinity."""
        errors = {"network": self.network, "constant": self.constant}
        finite = {n: e if e is not None and math.isfinite(e) else None for n, e in errors.items()}
        return {**finite, "error": self.error}


def _judged(problem: Problem) -> _Judged:
    likelihood = problem.likelihood
    with torch.no_grad():
        found = likelihood.against_constant(
            list(_outputs(problem, problem.data.batches(), EXAMPLES))
        )
    network, constant = found or (None, None)
    return _Judged(network, constant, likelihood.error_name)


def _reason(first: Method, judged: _Judged | None) -> str:
    name = type(first.before()).__name__
    if judged is None:
        return f"pretrain='auto': {name} trains the network first, as certify_split needs it."
    if judged.network is None or judged.constant is None:
        return (
            f"pretrain='auto': {name} trains the network first, since the likelihood cannot tell "
            f"how good a constant prediction is; pass pretrain=None for one that is trained."
        )
    errors = (
        f"its {judged.error} on training data is {judged.network:.4g}, that of the best constant "
        f"prediction {judged.constant:.4g}."
    )
    if judged.far_better:
        return f"pretrain='auto': the network is taken as trained and kept as it is; {errors}"
    advice = " Pass pretrain=None to keep it as it is." if judged.doubtful else ""
    return f"pretrain='auto': {name} trains the network first; {errors}{advice}"


def _noise_fitted_(first: Method, problem: Problem, judged: _Judged | None) -> str | None:
    """Set the likelihood's own numbers to the network's residuals, if it is what `first` starts at.

    Returns:
        On which examples; None where nothing was set.
    """
    if not any(each.requires_grad for each in problem.likelihood.parameters()):
        return None
    # A method that trains any network may have been given one whose residuals are no noise yet.
    if first.trains_network() and (
        first.draws_weights() or not (judged or _judged(problem)).far_better
    ):
        return None
    name, batches = "training", problem.data.batches
    if problem.validation is not None:
        name, batches = "validation", problem.validation
    with torch.no_grad():
        seen = list(_outputs(problem, batches(), EXAMPLES_FOR_NOISE))
        if len({outputs.shape[1:] for outputs, _ in seen}) > 1:
            return None  # of texts of several lengths, say, which cannot be joined
        outputs, target = (torch.cat(each) for each in zip(*seen, strict=True))
        return name if problem.likelihood.fit_to_(outputs[None], target) else None


def _outputs(
    problem: Problem, batches: Iterable[tuple[Inputs, Tensor]], examples: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the network returns for the first batches, and their targets."""
    seen = numbers = 0
    with (
        evaluating(problem.model),
        seeded(0, "check", problem.model),
    ):  # training draws as without a look
        for inputs, target in batches:
            outputs = problem.readout(call(problem.model, inputs))
            yield outputs, target
            seen, numbers = seen + len(target), numbers + outputs.numel()
            if seen >= examples or numbers >= MOST_NUMBERS:
                return
