"""The one way to a model with other weights.

Every method, metric and attack goes through `outputs` (weight samples), `linearised_outputs` (the
tangent's) or `local_outputs` (training, with noise that differs by example), or through `tape` or
`squared_gradients` where it looks at layers or single examples. The user's model is called as
`calling.py` does it, over many samples or examples at once, and never changed.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jvp
from torch.utils._pytree import tree_leaves, tree_map

from bayesify.core.batches import bare, batch_axes, batch_size, rows
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.isolation import Fresh
from bayesify.core.modes import attention_for_vmap
from bayesify.core.types import Draw, Inputs, Named, Readout
from bayesify.distributions.base import WeightDistribution
from bayesify.forward.calling import at_once, call_at, read_tensor
from bayesify.forward.checkpointing import check_error, check_graph, no_checkpointing
from bayesify.forward.input_gradients import frozen_layers
from bayesify.numerics.noise import single_or_better
from bayesify.weights.named import copied, count
from bayesify.weights.noise_scope import OtherUseError, Scopes
from bayesify.weights.structured import formed
from bayesify.weights.taped import Tape, TapedWeight

DRAWN_AT_ONCE = 8
"""Samples drawn together at least, however few are run together: drawing has a cost per call."""

NO_STORAGE = "doesn't have storage"
"""What torch says where an operation without a forward derivative reads a tensor's memory."""

GRADIENTS = 2**25
"""Numbers that the gradients of the examples of a chunk may hold together."""


def outputs(
    model: nn.Module,
    q: WeightDistribution,
    inputs: Inputs,
    n: int = 1,
    *,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
    vectorize: bool = True,
    readout: Readout = read_tensor,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Float[Tensor, "samples batch ..."]:
    """What the model returns under n weight samples of q; differentiable in q and in the inputs.

    Args:
        model: The network. Its mode (train, eval) is the caller's choice.
        q: Distribution over some of its weights; the others are read from the model, not copied.
        inputs: A tensor, positional arguments, or keyword arguments.
        n: Samples S. A finite set of members gives all M of them whatever n is.
        generator: Source of the weight samples; None for torch's global one.
        chunk_size: Samples run at once; None for all. The result does not depend on it.
        vectorize: False runs the samples one after the other, for models that `torch.vmap`
            cannot run (recurrent layers, data-dependent branches).
        readout: Turns what the model returns into a tensor (B, ...).
        within: Makes the context of each single call of the model, e.g. `Trunk.replay`.

    Raises:
        UnsupportedModelError: when `torch.vmap` cannot run the model, or it is checkpointed.
    """
    size = (q.size(n) if chunk_size is None else min(chunk_size, q.size(n))) if vectorize else 1
    given = Fresh(inputs)

    def call(draw_one: Draw) -> Tensor:
        return call_at(model, q.weights(draw_one), given, readout, within=within)

    with no_checkpointing(), _base_frozen(q, size):
        draws = q.draws(n, max(size, DRAWN_AT_ONCE), generator=generator)
        return _over_draws(call, draws, size, given)


def own_outputs(
    model: nn.Module,
    q: WeightDistribution,
    inputs: Sequence[Inputs],
    *,
    chunk_size: int | None = None,
    vectorize: bool = True,
    readout: Readout = read_tensor,
    within: Sequence[Callable[[], AbstractContextManager[Any]]] = (),
) -> list[Tensor]:
    """What each of M members returns for a batch of its own, (B_m, ...) each.

    One by one unless the batches are single tensors of one shape: masks are branches on data.

    Args:
        model: As of `outputs`.
        q: M members.
        inputs: A batch for each member.
        chunk_size: Members at once; None for all.
        vectorize: As of `outputs`.
        readout: As of `outputs`.
        within: Makes the context of each member's call; members then run one by one.
    """

    def call(one: tuple[Draw, Inputs], context: Callable[[], Any] = nullcontext) -> Tensor:
        return call_at(model, q.weights(one[0]), one[1], readout, within=context)

    members = len(inputs)
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    alike = len(tensors) == members and len({each.shape for each in tensors}) == 1
    size = min(chunk_size or members, members) if vectorize and alike and not within else 1
    with no_checkpointing(), _base_frozen(q, size):
        draw = q.sample(members)
        if size > 1:
            return list(_over_draws(call, [(draw, torch.stack(tensors))], size))
        drawn = (tree_map(lambda each, m=m: each[m], draw) for m in range(members))
        parts = zip(drawn, inputs, within or [nullcontext] * members, strict=True)
        return [call((one, own), context) for one, own, context in parts]


def _base_frozen(q: WeightDistribution, size: int) -> AbstractContextManager[Any]:
    """Of samples that change weights of the model, run alone: no gradients for the model's own."""
    needed = size == 1 and bool(q.perturbed) and torch.is_grad_enabled()
    return frozen_layers() if needed else nullcontext()


def linearised_outputs(
    model: nn.Module,
    q: WeightDistribution,
    inputs: Inputs,
    n: int = 1,
    *,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
    vectorize: bool = True,
    readout: Readout = read_tensor,
) -> Float[Tensor, "samples batch ..."]:
    """f(x, w*) + J (w - w*) for n weight samples w of q, J = df / dw at its point w*.

    Arguments as of `outputs`. Differentiable in the inputs, and in q with w* held.

    Raises:
        UnsupportedModelError: a layer has no derivative in forward mode, `torch.vmap` cannot run
            the model, or it is checkpointed.
    """
    _prepare_forward_mode()
    center, given = q.point(), Fresh(inputs)

    def at(weights: Named) -> Tensor:
        return call_at(model, weights, given, readout)

    def call(draw_one: Draw) -> Tensor:
        drawn = q.weights(draw_one).items()
        plain = {n: formed(each) for n, each in drawn}
        change = {n: plain[n] - each for n, each in center.items()}
        value, along, *_ = jvp(at, (center,), (change,))
        return value + along

    size = (q.size(n) if chunk_size is None else min(chunk_size, q.size(n))) if vectorize else 1
    try:
        with no_checkpointing(), attention_for_vmap():
            draws = q.draws(n, max(size, DRAWN_AT_ONCE), generator=generator)
            return _over_draws(call, draws, size, given)
    except RuntimeError as error:
        check_error(error)
        if not isinstance(error, NotImplementedError) and NO_STORAGE not in str(error):
            raise
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be linearised: {str(error).splitlines()[0]} Sample its "
            f"weights (a WeightPosterior; predictive='sampled'), or vary later layers' alone."
        ) from error


@cache
def _prepare_forward_mode() -> None:
    """At the first use torch compiles formulas by a function that it has deprecated, and warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def local_outputs(
    model: nn.Module,
    q: WeightDistribution,
    inputs: Inputs,
    n: int = 1,
    *,
    generator: torch.Generator | None = None,
    scopes: Scopes | None = None,
    readout: Readout = read_tensor,
) -> Float[Tensor, "samples batch ..."]:
    """As `outputs`, but examples may see different draws. For training gradients only.

    Each example's outputs have the law of a weight sample, jointly. One sample after the other:
    training takes one, seldom more.

    Args:
        model: The network, in eval mode: no example may depend on another.
        q: Distribution over some of its weights.
        inputs: One batch.
        n: Samples S.
        generator: Source of the noise.
        scopes: What `noise_scopes` found on an example; None for one draw a sample. A pass that
            uses a weight otherwise than the example's did is made anew with one draw.
        readout: As of `outputs`.
    """

    def call(allowed: Scopes | None) -> Tensor:
        weights = q.local_weights(generator=generator, scopes=allowed)
        return call_at(model, weights, inputs, readout)

    def one() -> Tensor:
        try:
            return call(scopes)
        except OtherUseError:
            return call(None)

    with no_checkpointing(), frozen_layers():
        return torch.stack([one() for _ in range(n)])


def tape(
    model: nn.Module,
    members: Draw,
    weights: Callable[[Draw], Named],
    inputs: Inputs,
    *,
    layers: Iterable[str],
    vectorize: bool = True,
    readout: Readout = read_tensor,
) -> tuple[Float[Tensor, "members batch ..."], Tape]:
    """What the model returns for each member, and what its layers were multiplied with.

    Run `torch.autograd.grad(loss, [tape.anchor])` on a loss made of the outputs; then the tape
    holds the gradients with respect to the layers' outputs too. No weight needs a gradient.

    Args:
        model: The network, in the mode the caller wants.
        members: A pytree with leading axis M.
        weights: Turns one member (without the axis) into what the model is called with.
        inputs: One batch.
        layers: Names of the weights that are taped.
        vectorize: Whether members run at once.
        readout: Turns what the model returns into a tensor.
    """
    record, taped = Tape(), set(layers)

    def call(member: Draw) -> Tensor:
        named = weights(member)
        noted = {n: TapedWeight(each, n, record) for n, each in named.items() if n in taped}
        return call_at(model, named | noted, inputs, readout)

    count, results = len(tree_leaves(members)[0]), []
    with no_checkpointing():
        for part in _parts(members, count if vectorize else 1):
            record.calls.append({})
            results.append(_over_samples(call, part))
            record.outputs = results[-1]
    return (results[0] if len(results) == 1 else torch.cat(results)), record


def squared_gradients(
    model: nn.Module,
    weights: Named,
    inputs: Inputs,
    target: Tensor,
    log_prob: Callable[[Tensor, Tensor], Tensor],
    *,
    chunk_size: int | None = None,
    vectorize: bool = True,
    readout: Readout = read_tensor,
) -> Named:
    """Sum over a batch's examples of (d log p(y_b | x_b, w) / dw)^2, number by number.

    With targets drawn from the model it is the diagonal Fisher information times B, up to noise.

    Args:
        model: The network, in eval mode: no example may depend on another.
        weights: Where the gradients are taken, by name; all others are the model's own.
        inputs: One batch.
        target: One for each example, (B, ...).
        log_prob: From outputs (1, ...) and target (1, ...) of one example to a number, nats.
        chunk_size: Examples run at once; None for as many as `GRADIENTS` numbers hold.
        vectorize: False runs the examples one after the other, for models that `torch.vmap`
            cannot run.
        readout: Turns what the model returns into a tensor.

    Returns:
        Tensors in the shapes of `weights`, in single precision or better, without a gradient.

    Raises:
        UnsupportedModelError: when `torch.vmap` cannot run the model, or it is checkpointed.
    """
    at, size = copied(weights), batch_size(inputs)
    chunk_size = chunk_size or max(1, GRADIENTS // count(weights))
    values, axes = bare(dict(inputs) if isinstance(inputs, Mapping) else inputs), batch_axes(inputs)

    def score(named: Named, one: Inputs, label: Tensor) -> Tensor:
        return log_prob(call_at(model, named, one, readout), label)

    def alone(named: Named, one: Inputs, label: Tensor) -> Tensor:
        one = tree_map(lambda each, axis: each if axis is None else each[None], one, axes)
        return score(named, one, label[None])

    def gradients(part: slice) -> Named:
        if vectorize:
            each = at_once(grad(alone), "examples", (None, axes, 0))
            cut = tree_map(lambda e, axis: e if axis is None else e[part], values, axes)
            return each(at, cut, target[part])
        with torch.enable_grad():
            named = {name: weight.requires_grad_() for name, weight in at.items()}
            result = score(named, rows(inputs, part), target[part])
            check_graph(result)
            found = torch.autograd.grad(result, list(named.values()), materialize_grads=True)
        return {name: each[None] for name, each in zip(named, found, strict=True)}

    sums = {n: torch.zeros_like(w, dtype=single_or_better(w.dtype)) for n, w in at.items()}
    step = chunk_size if vectorize else 1
    with no_checkpointing():
        for start in range(0, size, step):
            for name, each in gradients(slice(start, start + step)).items():
                sums[name] += each.to(sums[name].dtype).square().sum(0)
    return sums


def _parts(draw: Draw, size: int) -> Iterator[Draw]:
    """A draw in pieces of at most `size` samples."""
    held = len(tree_leaves(draw)[0])
    for start in range(0, held, size):
        yield draw if size >= held else tree_map(lambda each, a=start: each[a : a + size], draw)


def _over_draws(
    call: Callable[[Draw], Tensor],
    draws: Iterable[Draw],
    size: int,
    given: Fresh | None = None,
) -> Tensor:
    """`call` over all draws, `size` samples at once; it calls the model once, with `given`."""
    results = []
    for part in (part for draw in draws for part in _parts(draw, size)):
        results.append(_over_samples(call, part))
        if given is not None:
            given.renew()
    return results[0] if len(results) == 1 else torch.cat(results)


def _over_samples(call: Callable[[Draw], Tensor], draw: Draw) -> Tensor:
    if len(tree_leaves(draw)[0]) == 1:  # no batching rule is needed for one sample
        return call(tree_map(lambda each: each[0], draw)).unsqueeze(0)
    return at_once(call, "weight samples")(draw)
