"""A published ResNet-20 made Bayesian after the fact, then shared: ours, and honest rivals.

    python -m benchmarks.sharing_resnet.run --weights FILE --images FILE --out DIR
    python -m benchmarks.sharing_resnet.run ... --report          # the table, from what is there

The network was trained by others on all of CIFAR-10; FILE holds images of its training set and
1,017 of its test set (npz: x_train, y_train, x_test, y_test). The Fisher information comes from
1,000 training images (N = 5,085 of the file); these cannot choose a scale, as the network knows
them by heart. So temperatures, and the scale of the rows "chosen by halves", are chosen on one half
of the test images and judged on the other, both ways round. Shared arms are all of one unshared
posterior, that of least NLL on all test images at S = 50: compare these with it, at the same scale.
All see the same noise, S = 50 samples, or 200 of the best arms; fewer are the first of them. An arm
is a file of log probabilities; what is there is not run again, so take a new folder after a change.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.published import examples, resnet20
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import bayesify
from bayesify.data.augment import CropAndFlip
from bayesify.data.examples import Examples
from bayesify.evaluation.metrics.calibration import fit_temperature
from bayesify.evaluation.metrics.scores import accuracy, ece, nll
from bayesify.methods.sharing.codebook import share
from bayesify.methods.sharing.compression import Sizes
from bayesify.methods.sharing.merging import MergeLimits

SAMPLES, BATCH = 50, 128
FACTORS = (0.125, 0.177, 0.21, 0.25)
LAPLACE = bayesify.DiagonalLaplace(pretrain=None, where=bayesify.matrices, factor=1.0)
SHARED: dict[str, dict[str, Any]] = {
    "K=16": {"codes": 16},
    "K=64": {"codes": 64},
    "K=256": {"codes": 256},
    "K=1024": {"codes": 1024},
    "K=256, 0.2 % outliers": {"codes": 256, "outliers": 0.002},
    "K=256, no outliers": {"codes": 256, "outliers": 0.0},
    "K=256, blended": {"codes": 256, "blending": True},
    "K=256, EM": {"codes": 256, "em_steps": 10},
    "K=1024, merged": {"codes": 1024, "limits": MergeLimits(distance=3e-4)},
    "K=256, one sigma a layer": {"codes": 256, "law": "per_layer"},
    "K=256, shared mu": {"codes": 256, "law": "shared_loc"},
    "K=256, shared": {"codes": 256, "law": "shared"},
}
FIXED = {f"quantised, K={codes}": {"codes": codes, "law": "fixed"} for codes in (16, 64, 256, 1024)}
TUNED = {
    "K=64, tuned": bayesify.WeightSharing(
        pretrain=None, codes=64, epochs=4, lr=3e-4, mean_field=LAPLACE, rescale=False
    ),
    "K=256, tuned gently": bayesify.WeightSharing(
        pretrain=None,
        codes=256,
        epochs=2,
        lr=1e-4,
        scale_lr=3e-3,
        temperature=0.01,
        mean_field=LAPLACE,
        rescale=False,
    ),
}
VARIATIONAL = bayesify.MeanFieldVI(
    pretrain=None,
    where=bayesify.matrices,
    epochs=2,
    lr=1e-4,
    scale_lr=3e-3,
    initial_scale=0.1,
    temperature=0.01,
)
NARROWER = (1.0, 0.85, 0.707)
"""Of the noise of a tuned posterior, as `rescale` would choose; by halves here, as all scales."""
SAMPLES_OF = {"K=64": SAMPLES, "K=256": 200, "K=256, tuned gently": 200}
"""Shared arms of more than ten samples, and tuned ones of more than `SAMPLES`."""


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="arms whose name holds this")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    net = resnet20(options.weights)
    held = np.load(options.images)
    target = torch.from_numpy(held["y_test"]).long()
    if not options.report:
        run(options, net.eval(), held)
    report(options.out, target)


def run(options: argparse.Namespace, net: torch.nn.Module, held: Any) -> None:
    """Every arm that has no file."""
    test = examples(held, "test")
    x = torch.stack([test[i][0] for i in range(len(test))])

    def keep(name: str, make: Callable[[], Any], samples: int) -> None:
        file = options.out / f"{name}.safetensors"
        if file.exists() or options.only not in name:
            return
        posterior = make()
        facts = describe(posterior)
        with torch.no_grad():
            parts = [posterior.outputs(part, num_samples=samples) for part in x.split(BATCH)]
        log_probs = torch.cat(parts, 1).log_softmax(-1).half()
        save_file({"log_probs": log_probs}, file, {"facts": json.dumps(facts)})
        print(name, json.dumps(facts), flush=True)

    wide = unshared(options.out, net, held)
    fixed = bayesify.WeightPosterior(net, wide.scaled(2.0**-20), bayesify.Categorical())
    keep("map", lambda: fixed, 1)
    for factor in FACTORS:
        scaled = posterior_of(net, wide.scaled(factor))
        keep(f"unshared x {factor}", lambda p=scaled: p, SAMPLES)
    if not (options.out / f"unshared x {FACTORS[0]}.safetensors").exists():
        return
    factor = best_factors(options.out, torch.from_numpy(held["y_test"]).long(), SAMPLES)[0]
    scaled = wide.scaled(factor)
    loc, scale = scaled.point(), {n: e.detach() for n, e in scaled.scale.items()}

    def sharing(how: dict[str, Any]) -> Any:
        _, q = share(loc, scale, generator=torch.Generator().manual_seed(0), **how)
        return posterior_of(net, q.rounded())

    for name, how in (SHARED | FIXED).items():
        count = 1 if name in FIXED else SAMPLES_OF.get(name, 10)
        keep(name, lambda how=how: sharing(how), count)
    training = examples(held, "train", CropAndFlip())
    keep("mean-field VI", lambda: bayesify.fit(net, training, VARIATIONAL), SAMPLES)
    for name, method in TUNED.items():
        if options.only not in name:
            continue
        wide = tuned(options.out / f"fit of {name}", net, training, method, factor)
        for narrower in NARROWER:
            scaled = posterior_of(net, wide.q.scaled(narrower).rounded())
            keep(f"{name} x {narrower}", lambda p=scaled: p, SAMPLES_OF.get(name, SAMPLES))


def tuned(
    file: Path,
    net: torch.nn.Module,
    training: Examples,
    method: bayesify.WeightSharing,
    factor: float,
) -> Any:
    """Post hoc at the factor, shared, and tuned by the ELBO on training images; kept."""
    if not file.exists():
        method = replace(method, mean_field=replace(LAPLACE, factor=factor))
        bayesify.save(bayesify.fit(net, training, method, batch_size=64), file)
    return bayesify.load(file, net)


def unshared(folder: Path, net: torch.nn.Module, held: Any) -> bayesify.MeanField:
    """The mean-field posterior at factor 1; kept, as its Fisher information takes a while."""
    file = folder / "fisher"
    if not file.exists():
        bayesify.save(bayesify.fit(net, examples(held, "train"), LAPLACE), file)
    q = bayesify.load(file, net).q
    assert isinstance(q, bayesify.MeanField)
    return q


def posterior_of(net: torch.nn.Module, q: Any) -> bayesify.WeightPosterior:
    """Around the network."""
    return bayesify.WeightPosterior(net, q, bayesify.Categorical())


def describe(posterior: bayesify.WeightPosterior) -> dict[str, Any]:
    """Learnt numbers, and bytes really written."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = Sizes.of(bayesify.save(posterior, Path(folder) / "a"), posterior)
    numbers = sum(each.numel() for each in posterior.q.parameters())
    shared = isinstance(posterior.q, bayesify.SharedNormal)
    return {
        "numbers": numbers,
        **(posterior.q.tally() if shared else {}),
        **sizes.to_json(),
    }


def averaged(log_probs: Tensor, samples: int) -> Tensor:
    """Log of the mean of the first samples' probabilities."""
    part = log_probs[:samples].double()
    return part.logsumexp(0) - math.log(len(part))


def halves(size: int) -> list[tuple[slice, slice]]:
    """What is chosen on, and what is judged, both ways round."""
    first, second = slice(0, size // 2), slice(size // 2, size)
    return [(first, second), (second, first)]


def best_factors(
    folder: Path, target: Tensor, samples: int, arm: str = "unshared", factors: Any = FACTORS
) -> list[float]:
    """The factor of least NLL: on all images, then on either half."""
    losses = {
        factor: -averaged(read(folder, f"{arm} x {factor}")[0], samples)
        .gather(1, target[:, None])
        .squeeze()
        for factor in factors
        if (folder / f"{arm} x {factor}.safetensors").exists()
    }
    parts = [slice(None), *(chosen for chosen, _ in halves(len(target)))]
    return [min(losses, key=lambda f: losses[f][part].mean().item()) for part in parts]


def read(folder: Path, name: str) -> tuple[Tensor, dict[str, Any]]:
    """Log probabilities (S, N, C) and facts of an arm."""
    file = folder / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
    return load_file(file)["log_probs"].float(), facts


def judge(log_probs: Tensor, target: Tensor) -> dict[str, float]:
    """Numbers of one predictive; after a temperature chosen on the other half, too."""
    scaled = torch.empty_like(log_probs)
    for chosen, judged in halves(len(target)):
        temperature = fit_temperature(log_probs[chosen], target[chosen])
        scaled[judged] = (log_probs[judged] / temperature).log_softmax(1)
    probs, after = log_probs.exp(), scaled.exp()
    return {
        "accuracy": accuracy(probs, target),
        "nll": nll(probs, target),
        "ece": ece(probs, target),
        "nll_ts": nll(after, target),
        "ece_ts": ece(after, target),
    }


def report(folder: Path, target: Tensor) -> None:
    """One row for each arm and number of samples, as JSON lines and as a table."""
    rows = []
    families = {"unshared": FACTORS, **dict.fromkeys(TUNED, NARROWER)}
    for arm, factors in families.items():
        for samples in {10, SAMPLES, SAMPLES_OF.get(arm, SAMPLES)}:
            try:
                chosen = best_factors(folder, target, samples, arm, factors)
            except ValueError:  # none of them has been run
                continue
            both = torch.empty(len(target), 10, dtype=torch.float64)
            facts: dict[str, Any] = {}
            for factor, (_, judged) in zip(chosen[1:], halves(len(target)), strict=True):
                log_probs, facts = read(folder, f"{arm} x {factor}")
                both[judged] = averaged(log_probs, samples)[judged]
            name = f"{arm}, chosen by halves: {chosen[1:]}"
            rows.append({"arm": name, "samples": samples, **judge(both, target), **facts})
    for file in sorted(folder.glob("*.safetensors")):
        log_probs, facts = read(folder, file.stem)
        wanted = {10, SAMPLES, *SAMPLES_OF.values()}
        for samples in sorted({min(len(log_probs), each) for each in wanted}):
            row = {"arm": file.stem, "samples": samples}
            rows.append(row | judge(averaged(log_probs, samples), target) | facts)
    table = Table("arm", "S", "accuracy", "NLL", "ECE", "NLL T", "ECE T", "numbers", "file", "pair")
    for row in rows:
        print(json.dumps(row))
        numbers = [row[n] for n in ("accuracy", "nll", "ece", "nll_ts", "ece_ts")]
        cells = [f"{each:.4f}" for each in numbers]
        shares = [f"{row[n]:.1%}" for n in ("of_network", "of_pair")]
        table.add_row(row["arm"], str(row["samples"]), *cells, f"{row['numbers']:,}", *shares)
    Console(stderr=True, width=160).print(table)


if __name__ == "__main__":
    main()
