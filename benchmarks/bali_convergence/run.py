"""How fast BALI learns next to mean-field VI, and what one of its steps costs.

    python -m benchmarks.bali_convergence.run [--json FILE] [--data-dir DIR]

Passes: both methods train the same network from the same start on the same batches, on concrete
(first split of `uci_concrete.npz` in DIR) and on digits. Mean-field VI has 200 epochs, and the
prior, temperature and learning rate of a small grid with which its validation NLL ends lowest,
once among the untempered posteriors (T = 1) and once among all. BALI has 20 passes, and a setting
for each of the two races that is the same for both sets, chosen on validation data too. Counted is
after how many passes, and how many seconds of training, BALI's validation NLL is at or below the
one at which mean-field VI ends. The two take turns, ten epochs of one to each pass of the other, so
that a machine whose speed drifts slows both.

Steps: BALI against mean-field VI and a bare torch loop with Adam, medians of interleaved blocks.
"""

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import bayesify
from bayesify.forward.outputs import read_tensor
from bayesify.training.data import TrainingData

BATCH, EPOCHS, PASSES, SAMPLES = 100, 200, 20, 100
SHORT = {"epochs": PASSES, "min_steps": 1, "warmup": 20, "rate": 0.4, "prior_precision": 0.1}
"""BALI's default of 1,500 steps at least is made for the best posterior, not for the fewest steps:
with few the rate must be higher, and have fallen by their end."""

SETTINGS = {
    "T = 1": SHORT | {"temperature": 1.0, "damping": 0.5},
    "any T": SHORT | {"temperature": 0.1, "cap": 1.0, "damping": 0.1},
}
"""Of BALI, for the race with an untempered posterior and with the best of all."""

PRIORS = {
    "relative 0.3 around the start, T 0.1 (default)": {},
    "N(0, 1), T 1": {"prior_scale": 1.0, "temperature": 1.0},
    "N(0, 1), T 0.1": {"prior_scale": 1.0, "temperature": 0.1},
    "N(0, 1), T 0.01": {"prior_scale": 1.0, "temperature": 0.01},
}
RATES = (3e-3, 1e-2)


@dataclass(frozen=True)
class Case:
    """A data set as tensors, and the network for it."""

    name: str
    model: str
    splits: bayesify.data.Splits
    likelihood: str

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """All examples of "train", "validation" or "test"."""
        examples = getattr(self.splits, name)
        return examples.batch(torch.arange(len(examples)))


@dataclass
class Learner:
    """One method at work, with what it has cost and where it was after each epoch."""

    case: Case
    method: bayesify.Method
    seed: int
    seconds: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x, self.y = self.case.part("train")
        self.order = torch.Generator().manual_seed(self.seed)
        begin = time.perf_counter()
        self.run = self.method.start(
            problem(
                bayesify.models.build(
                    self.case.model,
                    self.case.splits.input_shape,
                    self.case.splits.num_outputs,
                    seed=self.seed,
                ),
                self.x,
                self.case.likelihood,
                seed=self.seed,
            )
        )
        self.before = time.perf_counter() - begin

    def epoch(self, *, judge: bool = True) -> None:
        """One pass over the data; the judgement afterwards is not timed."""
        begin = time.perf_counter()
        for index in torch.randperm(len(self.x), generator=self.order).split(BATCH):
            self.run.step(self.x[index], self.y[index])
        self.seconds.append(time.perf_counter() - begin)
        if judge:
            self.nll.append(self.judged("validation"))

    def judged(self, part: str) -> float:
        """NLL on a part, nats per example (regression: of the standardised target)."""
        x, y = self.case.part(part)
        predictive = self.run.posterior().predict(x, num_samples=SAMPLES)
        return -predictive.log_prob(y).mean().item()


def main() -> None:
    """Measure everything, print tables, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write one JSON object to this file")
    parser.add_argument("--data-dir", type=Path, help="where uci_concrete.npz is; without: digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=5, help="of a timing (default 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="for the step costs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": machine(),
        "bali": SETTINGS,
        "convergence": [convergence(case, options.seeds) for case in cases(options.data_dir)],
        "step": [
            step_cost(width, threads, options.repetitions)
            for threads in options.threads
            for width in (50, 200, 800)
        ],
    }
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")


def cases(data_dir: Path | None) -> list[Case]:
    """Concrete, if its folder is given, and digits."""
    found = [Case("digits", "mlp", bayesify.data.splits("digits"), "categorical")]
    if data_dir is not None:
        concrete = bayesify.data.splits("uci_concrete.npz", data_dir=data_dir, fold=0)
        found.insert(0, Case("concrete", "mlp-50", concrete, "gaussian"))
    return found


def problem(model: torch.nn.Module, x: Tensor, likelihood: str, *, seed: int) -> bayesify.Problem:
    """What a method is given to start from."""
    laws = {"gaussian": bayesify.Gaussian, "categorical": bayesify.Categorical}
    return bayesify.Problem(
        model=model,
        likelihood=laws[likelihood](),
        data=TrainingData.of(lambda: ((part, part[:, 0]) for part in x.split(BATCH))),
        readout=read_tensor,
        vectorize=True,
        generator=torch.Generator().manual_seed(seed),
    )


def convergence(case: Case, seeds: int) -> dict[str, Any]:
    """Passes and seconds until BALI is where the best mean-field VI ends."""
    grid: list[dict[str, Any]] = []
    for (name, prior), lr in itertools.product(PRIORS.items(), RATES):
        method = mean_field(prior, lr)
        learners = [Learner(case, method, seed) for seed in range(seeds)]
        for learner, number in itertools.product(learners, range(EPOCHS)):
            learner.epoch(judge=number == EPOCHS - 1)
        ends = [learner.nll[-1] for learner in learners]
        grid.append(
            {
                "prior": name,
                "lr": lr,
                "temperature": method.temperature,
                "validation_nll": statistics.mean(ends),
            }
        )
    races = {}
    for which, setting in SETTINGS.items():
        entrants = [each for each in grid if each["temperature"] == 1 or which != "T = 1"]
        best = min(entrants, key=lambda each: each["validation_nll"])
        method = mean_field(PRIORS[best["prior"]], best["lr"])
        seen = [race(case, method, bayesify.BALI(**setting), seed) for seed in range(seeds)]
        races[which] = {"mean_field": best, "seeds": seen}
    return {"data": case.name, "mean_field_grid": grid, "races": races}


def mean_field(prior: dict[str, float], lr: float) -> bayesify.MeanFieldVI:
    """From scratch, over all weights; local reparameterisation is how it draws in training."""
    centred = {"prior_loc": "zero", "prior_relative": False} if prior else {}
    return bayesify.MeanFieldVI(pretrain=None, epochs=EPOCHS, lr=lr, **centred, **prior)


def race(
    case: Case, mean_field: bayesify.MeanFieldVI, layerwise: bayesify.BALI, seed: int
) -> dict[str, Any]:
    """Both methods in turns on one seed."""
    vi, bali = Learner(case, mean_field, seed), Learner(case, layerwise, seed)
    for number in range(EPOCHS):
        vi.epoch()
        if number % (EPOCHS // PASSES) == 0:
            bali.epoch()
    target = vi.nll[-1]
    passes = next((i + 1 for i, nll in enumerate(bali.nll) if nll <= target), None)
    whole = vi.before + sum(vi.seconds)
    return {
        "mean_field_nll": vi.nll,
        "bali_nll": bali.nll,
        "target": target,
        "test_nll": {"mean_field": vi.judged("test"), "bali": bali.judged("test")},
        "passes": passes,
        "passes_of_mean_field": next(i + 1 for i, nll in enumerate(vi.nll) if nll <= target),
        "seconds_of_mean_field": whole,
        "seconds_of_bali": bali.before + sum(bali.seconds),
        "time_ratio": passes and (bali.before + sum(bali.seconds[:passes])) / whole,
        "milliseconds_per_step": {
            name: 1000 * statistics.median(each.seconds) / -(-len(each.x) // BATCH)
            for name, each in (("bali", bali), ("mean_field", vi))
        },
    }


def step_cost(width: int, threads: int, repetitions: int) -> dict[str, Any]:
    """Milliseconds of one step on 100 rows of a 64-width-10 network, and their ratios to Adam's."""
    torch.set_num_threads(threads)
    x, y = torch.randn(BATCH, 64), torch.randint(10, (BATCH,))

    def net() -> torch.nn.Module:
        return bayesify.models.build(f"mlp-{width}", (64,), 10, seed=0)

    def stepping(method: bayesify.Method) -> Callable[[], object]:
        run = method.start(problem(net(), x.repeat(10, 1), "categorical", seed=0))
        return lambda: run.step(x, y)

    medians = timed(
        {
            "adam": bare_step(net(), x, y),
            "mean_field": stepping(bayesify.MeanFieldVI(pretrain=None)),
            "refresh 1": stepping(bayesify.BALI()),
            "refresh 10": stepping(bayesify.BALI(refresh=10)),
        },
        repetitions,
    )
    torch.set_num_threads(1)
    ratios = {name: each / medians["adam"] for name, each in medians.items() if name != "adam"}
    return {"width": width, "threads": threads, "milliseconds": medians, "over_adam": ratios}


def bare_step(net: torch.nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Ordinary training without bayesify."""
    optimiser = torch.optim.Adam(net.train().parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()

    return step


def timed(work: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Median milliseconds of a call, in interleaved blocks of a multiple of ten calls each."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    calls = {}
    for name, function in work.items():
        begin = time.perf_counter()
        for _ in range(10):
            function()
        calls[name] = 10 * max(1, round(0.2 / (time.perf_counter() - begin)))
    for _, (name, function) in itertools.product(range(repetitions), work.items()):
        begin = time.perf_counter()
        for _ in range(calls[name]):
            function()
        seconds[name].append((time.perf_counter() - begin) / calls[name])
    return {name: 1000 * statistics.median(each) for name, each in seconds.items()}


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def show(result: dict[str, Any]) -> None:
    """Two tables for a person."""
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    table = Table("data", "mean-field VI", "NLL", "test", "BALI", "test", "passes", "time ratio")
    for case, which in itertools.product(result["convergence"], SETTINGS):
        best, seeds = case["races"][which]["mean_field"], case["races"][which]["seeds"]
        ends = [
            [each["target"] for each in seeds],
            [each["test_nll"]["mean_field"] for each in seeds],
            [each["bali_nll"][-1] for each in seeds],
            [each["test_nll"]["bali"] for each in seeds],
        ]
        table.add_row(
            case["data"],
            f"{which}: {best['prior']}, lr {best['lr']}",
            *(f"{statistics.median(each):.3f}" for each in ends),
            median([each["passes"] for each in seeds], ".0f"),
            median([each["time_ratio"] for each in seeds], ".2f"),
        )
    console.print(table)
    table = Table("hidden", "threads", "Adam ms", "mean-field", "BALI, refresh 1", "refresh 10")
    for row in result["step"]:
        ratios = [f"{each:.1f} x" for each in row["over_adam"].values()]
        adam = f"{row['milliseconds']['adam']:.2f}"
        table.add_row(str(row["width"]), str(row["threads"]), adam, *ratios)
    console.print(table)


def median(values: list[float | None], form: str) -> str:
    """The median and all values; None, for what was not reached, counts as the largest."""
    found = sorted(math.inf if each is None else each for each in values)
    middle, *texts = (
        "not" if math.isinf(each) else f"{each:{form}}"
        for each in (statistics.median(found), *found)
    )
    return f"{middle} ({', '.join(texts)})"


if __name__ == "__main__":
    main()
