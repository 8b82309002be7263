"""One row on one data set with one seed, in a process that does nothing else: fit, time, judge.

A small fit comes first, so that neither imports nor first calls are measured. Peak memory is how
far the process then rises above what it holds, by the kernel's own mark. Times are CPU seconds of
its one thread, as the machine may be busy; wall-clock seconds are kept beside them.
"""

import ctypes
import gc
import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from job import Job, Predict
from problems import Judged, Parts
from torch import Tensor

import bayesify.training.cost
from bayesify.evaluation.metrics import scores as metrics
from bayesify.evaluation.metrics.ood import auroc

CLEAR_REFS = bayesify.training.cost.CLEAR_REFS
LEAST = 1e-12
"""Probabilities below count as this, in every row: single precision rounds some to 0."""

TIMED, ENOUGH = 1000, 2.0


def run(fit: Callable[[Job], Predict], asked: dict[str, Any], given: Parts) -> dict[str, Any]:
    """With `asked["grid"]`: the best rate on the validation part; with `asked["lr"]`: the test."""
    bayesify.training.cost.CLEAR_REFS = (
        os.devnull
    )  # our own meter would wipe the mark that is read below
    return _choose(fit, asked, given) if "grid" in asked else _judge(fit, asked, given)


def _choose(fit: Callable[[Job], Predict], asked: dict[str, Any], given: Parts) -> dict[str, Any]:
    """The NLL on the validation part with each rate, and the best rate."""
    scores = {}
    for lr in asked["grid"]:
        job = given.job(lr)
        torch.manual_seed(job.seed)
        scores[lr] = _nll(fit(job)(job.held_out_x), job.held_out_y)
    finite = {lr: score for lr, score in scores.items() if math.isfinite(score)}
    if not finite:
        raise RuntimeError(f"no learning rate gave a finite likelihood: {scores}")
    return {"validation_nll": scores, "lr": min(finite, key=finite.__getitem__)}


def _judge(fit: Callable[[Job], Predict], asked: dict[str, Any], given: Parts) -> dict[str, Any]:
    """Quality on the test part, and what it took."""
    job, judged = given.job(asked["lr"]), given.judged
    _warm_up(fit, job)
    torch.manual_seed(job.seed)
    before = _reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    predict = fit(job)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    some = judged.x.repeat(-(-TIMED // len(judged.x)), 1)[:TIMED]
    milliseconds = 1000 * _seconds(lambda: predict(some))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "fit_seconds": seconds,
        "fit_cpu_seconds": cpu_seconds,
        "predict_ms": milliseconds,
        "peak_bytes": peak,
        **_quality(predict, judged),
    }


def _quality(predict: Predict, judged: Judged) -> dict[str, float]:
    """Every row by the same functions, on probabilities."""
    probs, foreign = _in_parts(predict, judged.x), _in_parts(predict, judged.foreign)
    return {
        "accuracy": metrics.accuracy(probs, judged.y),
        "nll": _nll(probs, judged.y),
        "ece": metrics.ece(probs, judged.y),
        "brier": metrics.brier(probs, judged.y),
        "auroc": auroc(-_entropy(probs), -_entropy(foreign)),
    }


def _in_parts(predict: Predict, x: Tensor) -> Tensor:
    return torch.cat([predict(each).detach() for each in x.split(TIMED)])


def _nll(probs: Tensor, y: Tensor) -> float:
    return metrics.nll(probs.detach().clamp_min(LEAST), y)


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs.double()).sum(1)


def _seconds(call: Callable[[], object]) -> float:
    """CPU seconds of a call: the median of three after a first one, which alone counts if long."""
    taken = []
    for _ in range(4):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
        if taken[0] > ENOUGH:
            return taken[0]
    return statistics.median(taken[1:])


def _reset_peak() -> int:
    """Sets the mark of the peak to the bytes that are resident now, which are returned."""
    with open(CLEAR_REFS, "w") as file:
        file.write("5")
    with open(bayesify.training.cost.STATUS) as file:
        line = next(line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _warm_up(fit: Callable[[Job], Predict], job: Job) -> None:
    """A small fit of the same kind, for what is paid once: imports on demand, first calls."""
    some = 2 * job.batch_size
    fit(replace(job, x=job.x[:some], y=job.y[:some], epochs=6))(job.x[:some])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # so that memory it has freed counts again
