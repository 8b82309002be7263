"""Which options should each method have out of the box? Judged on held-out halves, never on test.

    python -m benchmarks.defaults.run digits
    python -m benchmarks.defaults.run concrete --data-dir DIR
    python -m benchmarks.defaults.run fashion --data-dir DIR
    python -m benchmarks.defaults.run resnet --images cifar10_prefix.npz --weights FILE.safetensors
    python -m benchmarks.defaults.run tables

The rows are those of defaults-NAME.toml. Per seed (and fold) one network is trained, the row
`map` (or loaded); every row with a `pretrain` starts from it, so that differences are paired. Rows
that train networks of their own start afresh. `mc-dropout` has its rate in the network, and so it
has no rows there: it is run for each of `RATES`, with dropout in front of every linear layer but
the first.

Held-out examples are cut in two. Whatever is chosen on held-out examples (a temperature, the factor
of a Laplace approximation) is chosen on one half and judged on the other, both ways round, and the
score is the mean over both: nothing is judged on examples that it has seen. For a regression the
counterpart of temperature scaling is one factor for the predictive standard deviation, of a normal
with the predictive's mean and variance.

Appends one JSON line per row and seed to results/defaults.jsonl, and skips what is there. `tables`
prints the NLL minus that of `map` with temperature scaling, and its standard error.

`resnet` takes published weights and a file with `x_train, y_train, x_test, y_test`; the network has
seen the training images, so the first half of the test images is what is held out here, and the
other half is not touched.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.published import resnet20, some, train_and_half_of_test
from torch import nn

import bayesify
from bayesify.core.options import to_json
from bayesify.data import Examples
from bayesify.data.loading import as_loader
from bayesify.evaluation.metrics.calibration import fit_temperature
from bayesify.evaluation.predictions import Predictions, collect
from bayesify.experiments.choices import likelihood_of
from bayesify.experiments.suite import Entry, Suite, read
from bayesify.likelihoods import Likelihood
from bayesify.weights.named import assign_

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "defaults.jsonl"
PROBLEMS = ("digits", "concrete", "fashion", "resnet")
LIMITS = {"fashion": (5000, 2000)}
"""Training and held-out images, of more than there is time for."""

RATES = {"digits": (0.05, 0.1, 0.2, 0.5), "concrete": (0.01, 0.05, 0.1, 0.2)}
NAMES = {kind: name for name, kind in bayesify.METHODS.items()}
CHOOSING = ("diagonal-laplace", "laplace", "weight-sharing")
"""Methods that choose a number on the examples that `fit` gets as `validation`."""


@dataclass(frozen=True, eq=False)
class Case:
    """The data of one seed, an untrained network, and the trained one with its noise."""

    problem: str
    suite: Suite
    fold: int | None
    seed: int
    train: Examples
    halves: tuple[Examples, Examples]
    fresh: nn.Module
    trained: nn.Module
    task: str
    noise: Likelihood

    def fit(self, model: nn.Module, method: Any, noise: Likelihood, **more: Any) -> Any:
        """A posterior, with this case's seed and batches."""
        given = {"likelihood": noise, "seed": self.seed, "batch_size": self.suite.batch_size}
        return bayesify.fit(model, self.train, method, **given, **more)

    def likelihood(self, options: Any = None) -> Likelihood:
        """One whose noise is not learnt yet."""
        return likelihood_of(self.task, options or {})


def main() -> None:
    """Run the rows of a problem, or print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("problem", choices=(*PROBLEMS, "tables"))
    parser.add_argument("--data-dir")
    parser.add_argument("--images")
    parser.add_argument("--weights")
    parser.add_argument("--only", help="methods, with commas between them")
    options = parser.parse_args()
    if options.problem == "tables":
        print(tables())
        return
    suite = read(HERE / f"defaults-{options.problem}.toml")
    wanted = options.only.split(",") if options.only else [*bayesify.METHODS]
    for fold in suite.folds if isinstance(suite.folds, tuple) else (None,):
        for seed in suite.seeds:
            run(options, suite, fold, seed, wanted)


def run(
    options: argparse.Namespace, suite: Suite, fold: int | None, seed: int, wanted: list[str]
) -> None:
    """All rows of one seed that are not there yet."""
    done = {
        each["setting"]
        for each in records()
        if (each["problem"], each["fold"], each["seed"]) == (options.problem, fold, seed)
    }
    rows = [each for each in suite.methods[1:] if NAMES[type(each.method)] in wanted]
    rates = RATES.get(options.problem, ()) if "mc-dropout" in wanted else ()
    todo = [each for each in rows if each.label not in done]
    masks = [rate for rate in rates if f"mc-dropout p={rate}" not in done]
    if suite.methods[0].label in done and not todo and not masks:
        return
    case = prepare(options, suite, fold, seed)
    if suite.methods[0].label not in done:
        keep(case, "map", suite.methods[0].label, {}, lambda: 2 * [posterior_at(case)])
    for entry in todo:
        shown = to_json(entry.method)
        keep(case, NAMES[type(entry.method)], entry.label, shown, lambda e=entry: fitted(case, e))
    for rate in masks:
        with_masks(case, suite.methods[0].method, rate)


def prepare(options: argparse.Namespace, suite: Suite, fold: int | None, seed: int) -> Case:
    """The trained network and the data of one seed."""
    if options.problem == "resnet":
        return published(suite, seed, Path(options.images), Path(options.weights))
    splits = bayesify.data.splits(
        suite.data[0],
        data_dir=options.data_dir,
        seed=seed,
        fold=fold,
        validation_share=suite.validation_share,
    )
    train, held_out = splits.train, splits.validation
    if options.problem in LIMITS:
        for_training, for_judging = LIMITS[options.problem]
        train, held_out = some(train, 0, for_training), some(held_out, 0, for_judging)
    net = bayesify.models.build(suite.models[0], splits.input_shape, splits.num_outputs, seed=seed)
    noise = likelihood_of(splits.task, {})
    case = Case(
        options.problem, suite, fold, seed, train, cut(held_out), net, net, splits.task, noise
    )
    return trained(case, suite.methods[0].method)


def trained(case: Case, method: Any) -> Case:
    """The case with its network trained by `method`."""
    posterior = case.fit(case.fresh, method, case.likelihood())
    net = copy.deepcopy(case.fresh)
    assign_(net, posterior.point())
    return replace(case, trained=net, noise=posterior.likelihood)


def published(suite: Suite, seed: int, images: Path, weights: Path) -> Case:
    """A published ResNet-20, its training images, and the first half of its test images."""
    net, (train, half) = resnet20(weights), train_and_half_of_test(images)
    halves = cut(half)
    noise = likelihood_of("classification", {})
    return Case("resnet", suite, None, seed, train, halves, net, net, "classification", noise)


def cut(examples: Examples) -> tuple[Examples, Examples]:
    """Two halves; the order of held-out examples is random already."""
    middle = len(examples) // 2
    return some(examples, 0, middle), some(examples, middle, 2 * middle)


def posterior_at(case: Case) -> bayesify.Posterior:
    """The network as it is."""
    q = bayesify.Particles.of_models([case.trained])
    return bayesify.WeightPosterior(case.trained, q, case.noise)


def fitted(case: Case, entry: Entry) -> list[bayesify.Posterior]:
    """The posterior for each half: one may have chosen a number on the other half."""
    method, noise = entry.method, case.likelihood(entry.likelihood)
    model = case.fresh
    if "pretrain" in to_json(method) and NAMES[type(method)] != "bali":
        method, model, noise = replace(method, pretrain=None), case.trained, case.noise  # type: ignore[call-arg]
    if NAMES[type(method)] not in CHOOSING:
        return 2 * [case.fit(model, method, noise)]
    return [case.fit(model, method, noise, validation=case.halves[i]) for i in (1, 0)]


def with_masks(case: Case, method: Any, rate: float) -> None:
    """MC dropout at one rate, and the same network without masks."""
    case = trained(replace(case, fresh=with_dropout(case.fresh, rate)), method)
    only = bayesify.MCDropout(pretrain=None)
    keep(case, "mc-dropout", f"mc-dropout p={rate}, off", {}, lambda: 2 * [posterior_at(case)])
    keep(
        case,
        "mc-dropout",
        f"mc-dropout p={rate}",
        {"p": rate},
        lambda: 2 * [case.fit(case.trained, only, case.noise)],
    )


def with_dropout(net: nn.Module, rate: float) -> nn.Sequential:
    """The same layers with dropout in front of every linear one that is not the first."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in net.named_children():
        weights = any(True for each in layers.values() for _ in each.parameters())
        if isinstance(layer, nn.Linear) and weights:
            layers[f"dropout_{name}"] = nn.Dropout(rate)
        layers[name] = layer
    return nn.Sequential(layers)


def keep(
    case: Case,
    method: str,
    setting: str,
    options: dict[str, Any],
    posteriors: Callable[[], list[bayesify.Posterior]],
) -> None:
    """Fit, judge, append one line."""
    start = time.process_time()
    line: dict[str, Any] = {"problem": case.problem, "method": method, "setting": setting}
    line |= {"fold": case.fold, "seed": case.seed, "options": options}
    try:
        found = judge(posteriors(), case)
        line |= {name: each if math.isfinite(each) else None for name, each in found.items()}
    except bayesify.BayesifyError as error:
        line["failure"] = str(error)
    line["cpu_seconds"] = round(time.process_time() - start, 1)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print({name: each for name, each in line.items() if name != "options"}, flush=True)


def judge(posteriors: list[bayesify.Posterior], case: Case) -> dict[str, float]:
    """Scores on each half, of the posterior for it; the temperature comes from the other half."""
    first = predictions(posteriors[0], case)
    second = first if posteriors[1] is posteriors[0] else predictions(posteriors[1], case)
    judged = [(first[0], first[1]), (second[1], second[0])]
    return {
        "nll": statistics.fmean([-each.log_prob.double().mean().item() for each, _ in judged]),
        "nll_scaled": statistics.fmean([scaled_nll(each, other) for each, other in judged]),
        "error": statistics.fmean([error_of(each) for each, _ in judged]),
    }


def predictions(posterior: bayesify.Posterior, case: Case) -> list[Predictions]:
    """Of both halves."""
    samples = case.suite.num_samples
    loaders = [as_loader(half, batch_size=256, shuffle=False) for half in case.halves]
    return [collect(posterior, each, num_samples=samples) for each in loaders]


def scaled_nll(judged: Predictions, other: Predictions) -> float:
    """NLL after one factor, the best for the `other` predictions of the same posterior."""
    if judged.task == "classification":
        temperature = fit_temperature(other.log_probs, other.target, prior_scale=math.inf)
        logits = judged.log_probs.double() / temperature
        return nn.functional.cross_entropy(logits, judged.target).item()
    squares = [
        ((each.target.reshape(each.mean.shape) - each.mean).square() / each.variance).double()
        for each in (judged, other)
    ]
    factor = squares[1].mean()
    variance = factor * judged.variance.double()
    terms = squares[0] / factor + (2 * math.pi * variance).log()
    return terms.sum(-1).mean().item() / 2


def error_of(judged: Predictions) -> float:
    """Share of wrong labels, or the RMSE in the units that the network sees."""
    if judged.task == "classification":
        return (judged.probs.argmax(1) != judged.target).double().mean().item()
    target = judged.target.reshape(judged.mean.shape)
    return (target - judged.mean).double().square().mean().sqrt().item()


def records() -> list[dict[str, Any]]:
    """All lines that are there."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def tables() -> str:
    """For each method its settings by problem: NLL, and scaled NLL, minus that of scaled MAP."""
    lines = records()
    base = {key(each): each["nll_scaled"] for each in lines if each["setting"] == "map"}
    found = []
    for method in dict.fromkeys(each["method"] for each in lines):
        found += ["", f"| {method} | {' | '.join(PROBLEMS)} |", "|---|---|---|---|---|"]
        of_method = [each for each in lines if each["method"] == method]
        for setting in dict.fromkeys(each["setting"] for each in of_method):
            rows = [each for each in of_method if each["setting"] == setting]
            cells = (cell([e for e in rows if e["problem"] == name], base) for name in PROBLEMS)
            found.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(found)


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What pairs are made by."""
    return line["problem"], line["fold"], line["seed"]


def cell(lines: list[dict[str, Any]], base: dict[tuple[Any, ...], float]) -> str:
    """As fitted, and after a factor of its own in brackets."""
    if not lines:
        return "-"
    plain, scaled = (difference(lines, name, base) for name in ("nll", "nll_scaled"))
    return f"{plain} ({scaled})"


def difference(lines: list[dict[str, Any]], name: str, base: dict[tuple[Any, ...], float]) -> str:
    """Mean and standard error, if there is one."""
    if any(each.get(name) is None for each in lines):
        return "no number"
    values = [each[name] - base[key(each)] for each in lines]
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    return f"{statistics.mean(values):+.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
