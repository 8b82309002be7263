"""The one door: `fit(model, data, method) -> Posterior`."""

import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayesify.core.batches import first_example, split_batch, to_device
from bayesify.core.clones import clone
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.isolation import lock_of
from bayesify.core.modes import seeded
from bayesify.core.options import to_json
from bayesify.core.streams import stream
from bayesify.core.types import Inputs, Named, Readout
from bayesify.core.version import __version__
from bayesify.core.wrappers import unwrap_parts_, unwrapped
from bayesify.data.loading import Data, Passes, as_loader, is_augmented
from bayesify.data.samplers import check_one_process, different, num_data
from bayesify.forward.chunking import can_vectorize
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import Likelihood, resolve
from bayesify.posteriors.base import FitRecord, Posterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.callbacks import Callback
from bayesify.training.checks import check_data, check_held_out
from bayesify.training.cost import CostMeter, FlopCounter
from bayesify.training.data import Batches, TrainingData
from bayesify.training.holdout import CertifyingPart, cut
from bayesify.training.method import Log, Method
from bayesify.training.problem import Problem
from bayesify.training.rehearsal import in_words, step_on_smallest
from bayesify.training.soundness import check_sound
from bayesify.training.starting import begun, phases_of
from bayesify.weights.named import assign_, weights_of


def fit(
    model: nn.Module,
    data: Data,
    method: Method,
    *,
    validation: Data | None = None,
    likelihood: str | Likelihood = "categorical",
    seed: int = 0,
    device: torch.device | str | None = None,
    batch_size: int = 64,
    callbacks: Sequence[Callback] = (),
    copy: bool = True,
    readout: Readout = read_tensor,
    vectorize: bool | None = None,
) -> Posterior:
    """Fit a posterior over the weights of `model`.

    Args:
        model: Any network. It stays bitwise as it is, unless `copy=False`.
        data: A `DataLoader`, a `Dataset` of `(x, y)`, or the tensors `(x, y)`. Batches are
            `(inputs, target)`, with inputs a tensor, tuple or mapping, or one mapping with a
            `labels` entry.
        method: What to do, e.g. `bayesify.STF()`.
        validation: Held-out examples on which a method may choose numbers, as `DiagonalLaplace`
            does; never trained on, and ignored by methods that need none. As `data`.
        likelihood: "categorical", "bernoulli", "gaussian", or a `Likelihood`.
        seed: Seeds all randomness of the fit; torch's global generator is left as it was.
        device: Where to train; None for where the model is.
        batch_size: Examples a batch, where `data` is no loader.
        callbacks: Watch the fit, e.g. `bayesify.ProgressBar()`.
        copy: Whether to work on a copy of the model and likelihood. Without, the model is left in
            eval mode and as the method leaves it (frozen, say); saves its memory.
        readout: Turns an output object into the tensor that the likelihood reads.
        vectorize: Whether samples and members run at once by `torch.vmap`; None decides by the
            types of the layers (recurrent ones cannot).

    Returns:
        The posterior, with a `FitRecord` in `.record`.

    Raises:
        BayesifyError: bad data, options or model, before any time is spent on training; a loss
            that diverges, or a posterior that is not finite or absurdly wide (`DivergenceError`).

    With `pretrain="auto"`, as most methods have it, a network that is trained already is not
    trained again; how that is told, and where noise starts, is in `training/starting.py`. What came
    of it is in `posterior.record.start`, and told to the logger "bayesify".

    With a method's `certify_split`, the weights that `model` comes with must not have been trained
    on `data` either: nobody can check that, and certificates would be void.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(100, 2); y = (x[:, 0] > 0).long()
        >>> from bayesify.methods import MAP
        >>> posterior = fit(net, (x, y), MAP(epochs=2), seed=1)
        >>> len(posterior.record.history)
        2
    """
    phases = phases_of(method)
    options = to_json(method)  # raises when they cannot be recorded
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"model: expected a torch.nn.Module, got {model!r}.")
    model = unwrapped(model)
    weights_of(model)  # raises when there are none
    place = torch.device(device or next(model.parameters()).device)
    with CostMeter(place) as cost, ExitStack() as inside:
        if copy:
            with lock_of(model):
                model = unwrap_parts_(clone(model))
            likelihood = clone(likelihood)
        model.to(place)
        likelihood = resolve(likelihood).to(place)
        inside.enter_context(seeded(seed, "global", model))
        before, data, certifying = _parts(data, method, seed)
        how = (model, likelihood, readout, batch_size)
        problem = Problem(
            model=model,
            likelihood=likelihood,
            data=_training_data(data, *how),
            readout=readout,
            vectorize=can_vectorize(model) if vectorize is None else vectorize,
            generator=stream(seed, "fit"),
            validation=_held_out(validation, *how),
        )
        early = problem
        if before is not None:
            early = replace(problem, data=_training_data(before, *how))
        phases, start = begun(phases, early, kept_apart=before is not None)
        _rehearse(phases, problem, early)
        history: list[dict[str, Any]] = []
        posterior, price = _train(problem, phases, callbacks, history, early=early)
        check_sound(posterior, problem)
    model.eval()
    posterior.record = FitRecord(
        options=options,
        seed=seed,
        num_data=certifying.num_data if certifying else problem.data.num_data,
        history=history,
        seconds=cost.seconds,
        **price,
        peak_memory_bytes=cost.peak_memory_bytes,
        versions=versions(),
        certifying=certifying.to_json() if certifying else None,
        start=start.to_json(),
    )
    return posterior


def versions() -> dict[str, str]:
    """Of bayesify, torch and Python."""
    return {
        "bayesify": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _parts(
    data: Data, method: Method, seed: int
) -> tuple[Data | None, Data, CertifyingPart | None]:
    """What earlier phases see, None for the same; what the method sees; and how that was cut."""
    share = method.certify_split
    if not share:
        return None, data, None
    if method.pretrain is None:
        raise OptionError(
            f"certify_split={share} keeps data from the training of the network, but pretrain is "
            f"none; name a method that trains it. A network that was trained elsewhere, on other "
            f"data, is certified by `certify(..., held_out=True)`."
        )
    return cut(data, share, seed)


def _training_data(
    data: Data, model: nn.Module, likelihood: Likelihood, readout: Readout, batch_size: int
) -> TrainingData:
    """The data, checked."""
    loader = as_loader(data, batch_size=batch_size, shuffle=True)
    check_one_process(loader)
    passes = Passes(loader)
    found = check_data(loader, model, likelihood, readout)
    return TrainingData(
        batches=lambda: _batches(passes(), next(model.parameters()).device),
        num_data=num_data(loader, found.examples),
        steps_per_epoch=found.batches,
        example=found.first,
        smallest=found.smallest,
        different=different(loader, found.examples),
        is_augmented=lambda: is_augmented(loader),
    )


def _held_out(
    data: Data | None, model: nn.Module, likelihood: Likelihood, readout: Readout, batch_size: int
) -> Batches | None:
    """What gives the batches of `data`, which have been checked."""
    if data is None:
        return None
    loader = as_loader(data, batch_size=batch_size, shuffle=False)
    with seeded(0, "check", model):  # the training's own random numbers do not depend on it
        check_held_out(loader, model, likelihood, readout)
    passes = Passes(loader)
    return lambda: _batches(passes(), next(model.parameters()).device)


def _rehearse(phases: Sequence[Method], problem: Problem, early: Problem) -> None:
    """All phases take a step on one copy, and predict: what cannot be done says so at once.

    Args:
        phases: The method, and those before it, from last to first.
        problem: What the method sees.
        early: What the others see.
    """
    model, likelihood = clone(problem.model), clone(problem.likelihood)
    trained = None
    for phase in reversed(phases):
        own = problem if phase is phases[0] else early
        if trained is not None:
            _check_start(phase, trained)
            assign_(model, _point(trained))
        rehearsal = replace(
            own,
            model=model,
            likelihood=likelihood,
            data=replace(own.data, batches=lambda own=own: iter([own.data.smallest])),
            generator=stream(0, "rehearsal"),
            trained=trained,
        )
        with in_words(type(phase).__name__, rehearsal), torch.no_grad():
            with torch.enable_grad():
                run = phase.start(rehearsal)
                step_on_smallest(run, rehearsal)
                trained = run.posterior()
            trained.outputs(first_example(own.data.example), num_samples=2)


def _check_start(method: Method, trained: Posterior) -> None:
    """That a method which begins at one network is not given several.

    Raises:
        OptionError: it is; the mean of networks that were trained apart is no network.
    """
    if method.from_members():
        return
    networks = trained.q.networks if isinstance(trained, WeightPosterior) else 1
    if networks > 1:
        name = type(method).__name__
        raise OptionError(
            f"{name}(pretrain=...): expected a method that trains one network, which {name} "
            f"begins at, such as bayesify.MAP(); got one that trains {networks}, whose mean is no "
            f"network."
        )


def _point(trained: Posterior) -> Named:
    """What the model is given to go on from; a mean where the method begins at several networks."""
    return trained.q.point() if isinstance(trained, WeightPosterior) else trained.point()


def _train(
    problem: Problem,
    phases: Sequence[Method],
    callbacks: Sequence[Callback],
    history: list[dict[str, Any]],
    *,
    early: Problem,
) -> tuple[Posterior, dict[str, Any]]:
    """The posterior, and what an epoch and a step of the method's own cost, by fields of a record.

    Phases, from last to first; those before the method's own see the data of `early`.
    """
    method, *before = phases
    if before:
        trained, _ = _train(early, before, callbacks, history, early=early)
        assign_(problem.model, _point(trained))
        problem = replace(problem, trained=trained)
    device = next(problem.model.parameters()).device
    run = method.start(problem)
    phase, flops = type(method).__name__, None
    for callback in callbacks:
        callback.on_phase_start(phase, run.epochs, problem.data.steps_per_epoch)
    try:
        with CostMeter(device) as cost:
            for epoch in range(run.epochs):
                logs = []
                for inputs, target in problem.data.batches():
                    if flops is None:
                        with FlopCounter() as counter:
                            logs.append(run.step(inputs, target))
                        flops = counter.total
                    else:
                        logs.append(run.step(inputs, target))
                    for callback in callbacks:
                        callback.on_step({name: float(each) for name, each in logs[-1].items()})
                run.end_epoch(epoch)
                history.append({"phase": phase, "epoch": epoch, **_means(logs)})
                for callback in callbacks:
                    callback.on_epoch_end(history[-1])
    finally:
        for callback in callbacks:
            callback.on_phase_end()
    price = {
        "seconds_per_epoch": cost.seconds / run.epochs,
        "seconds_per_step": cost.seconds / run.epochs / problem.data.steps_per_epoch,
        "flops_per_step": flops,
    }
    return run.posterior(), price


def _batches(batches: Iterator[Any], device: torch.device) -> Iterator[tuple[Inputs, Tensor]]:
    """The batches, split, on the device."""
    for batch in batches:
        yield to_device(split_batch(batch), device)


def _means(logs: list[Log]) -> dict[str, float]:
    """Over the steps that gave a number; a method that undid a step has none to give."""
    means = {}
    for name, first in logs[0].items():
        values = [log[name] for log in logs]
        numbers = torch.stack(values).tolist() if isinstance(first, Tensor) else values
        given = [each for each in numbers if each == each]
        means[name] = sum(given) / len(given) if given else math.nan
    return means
