"""Which prior, scale and temperature for STF and mean-field VI? Judged on validation data only.

    python -m benchmarks.prior.run digits
    python -m benchmarks.prior.run fashion-mnist --data-dir DIR
    python -m benchmarks.prior.run resnet20 --images cifar10_prefix.npz --weights FILE.safetensors

Per seed one network is trained (or loaded) and every setting starts from it, so that differences to
it are paired. Appends one JSON line per setting and seed to its results,
and prints the mean difference in NLL to the trained network, with its standard error over seeds.

`resnet20` takes published weights and a file with `x_train, y_train, x_test, y_test`; the network
has seen the training images, so the first half of the test images serves as validation part here,
and the other half is not touched.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.published import resnet20, some, train_and_half_of_test
from torch import nn

import bayesify
from bayesify.data import Examples
from bayesify.weights.named import assign_

RESULTS = Path(__file__).parent / "results" / "prior_study.jsonl"
TEMPERATURES = (1.0, 0.1, 0.01)
PRIORS = [
    {"prior_loc": "start", "prior_relative": True, "prior_scale": 0.1},
    {"prior_loc": "start", "prior_relative": True, "prior_scale": 0.3},
    {"prior_loc": "start", "prior_relative": True, "prior_scale": 1.0},
    {"prior_loc": "zero", "prior_relative": False, "prior_scale": 1.0},
]


@dataclass(frozen=True)
class Case:
    """A trained network with the data to go on from."""

    model: nn.Module
    train: Examples
    validation: Examples


def main() -> None:
    """Run the study and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=("digits", "fashion-mnist", "resnet20"))
    parser.add_argument("--methods", default="stf,mean-field-vi")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=None, help="of the method")
    parser.add_argument("--data-dir")
    parser.add_argument("--images")
    parser.add_argument("--weights")
    options = parser.parse_args()
    differences: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        case = prepare(options, seed)
        trained = judge(posterior_at(case.model), case)
        keep(options.problem, "trained network", {}, seed, trained)
        for name, changes in settings(options.methods.split(","), options.epochs):
            method = replace(bayesify.METHODS[name](), pretrain=None, **changes)
            posterior = bayesify.fit(case.model, case.train, method, seed=seed)
            metrics = judge(posterior, case) | {"relative_scale": relative_scale(posterior)}
            keep(options.problem, name, changes, seed, metrics)
            difference = metrics["nll"] - trained["nll"]
            differences.setdefault(f"{name} {changes}", []).append(difference)
            print(f"{difference:+.4f}  seed {seed}  {name} {changes}", flush=True)
    print(f"\nNLL minus the trained network's, {options.problem}, {options.seeds} seeds")
    for setting, values in sorted(differences.items(), key=lambda each: statistics.mean(each[1])):
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{statistics.mean(values):+.4f} +- {error:.4f}  {setting}")


def settings(methods: list[str], epochs: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method under every prior and temperature."""
    more = {} if epochs is None else {"epochs": epochs}
    for name, prior, temperature in itertools.product(methods, PRIORS, TEMPERATURES):
        yield name, {**prior, "temperature": temperature, **more}


def prepare(options: argparse.Namespace, seed: int) -> Case:
    """The trained network and the data of one seed."""
    if options.problem == "resnet20":
        return published(Path(options.images), Path(options.weights))
    splits = bayesify.data.splits(options.problem, data_dir=options.data_dir, seed=seed)
    images = options.problem == "fashion-mnist"
    train, validation = (
        (some(splits.train, 0, 5000), some(splits.validation, 0, 3000))
        if images
        else (splits.train, splits.validation)
    )
    net = bayesify.models.build("cnn" if images else "mlp", splits.input_shape, 10, seed=seed)
    method = bayesify.MAP(epochs=20) if images else bayesify.MAP()
    assign_(net, bayesify.fit(net, train, method, seed=seed).point())
    return Case(net, train, validation)


def published(images: Path, weights: Path) -> Case:
    """A published ResNet-20, its training images, and the first half of its test images."""
    return Case(resnet20(weights), *train_and_half_of_test(images))


def posterior_at(model: nn.Module) -> bayesify.WeightPosterior:
    """The network as it is."""
    q = bayesify.Particles.of_models([model])
    return bayesify.WeightPosterior(model, q, bayesify.Categorical())


def judge(posterior: bayesify.Posterior, case: Case) -> dict[str, float]:
    """Metrics on the validation part."""
    return bayesify.evaluate(posterior, case.validation).metrics


def relative_scale(posterior: Any) -> float:
    """Mean over tensors of mean scale over root mean square weight."""
    loc = posterior.q.point()
    ratios = [
        (scale.mean() / loc[name].square().mean().sqrt().clamp_min(1e-9)).item()
        for name, scale in posterior.q.scale.items()
    ]
    return statistics.median(ratios)


def keep(problem: str, method: str, changes: dict[str, Any], seed: int, metrics: Any) -> None:
    """Append one line."""
    line = {"problem": problem, "method": method, **changes, "seed": seed, **metrics}
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
