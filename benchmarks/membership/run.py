"""Who gives its training examples away? Threshold attacks on networks trained to zero loss.

    python -m benchmarks.membership.run --data fashion-mnist --data-dir DIR --out FILE.jsonl
    python -m benchmarks.membership.run ... --lira DIR --shadows 8 --methods map

The case is made to leak: few images, no augmentation, next to no prior, and enough epochs for a
training accuracy of 1. Per seed, members and non-members are drawn from the training part at random
and are as many, so nothing but the training tells them apart; all methods of a seed see the same.
What is fitted on top of MAP (STF, mean-field VI) starts from a MAP fit of the same epochs.

Appends one JSON line per (method, seed) to --out, skips those that are there, and prints a table of
means and standard errors over seeds. With --lira the likelihood-ratio attack runs too, with shadow
posteriors kept below that folder, next to a threshold on the same shadows' losses.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import bayesify
from bayesify.data import Examples, Splits
from bayesify.evaluation.privacy.membership import attack_auc, membership
from bayesify.evaluation.privacy.shadow import Shadows, shadow_attack
from bayesify.training.method import Method

PRIOR_SCALE = 1e3
COLUMNS = {
    "accuracy": "test acc",
    "train_accuracy": "train acc",
    "nll": "test NLL",
    "membership_auc": "loss AUC",
    "membership_tpr1": "TPR 1%",
    "membership_tpr01": "TPR .1%",
    "membership_auc_confidence": "conf AUC",
    "membership_auc_entropy": "entr AUC",
    "membership_auc_mutual_information": "MI AUC",
    "seconds": "seconds",
}
LIRA_COLUMNS = {
    "threshold_auc": "loss AUC",
    "lira_auc": "LiRA AUC",
    "lira_tpr1": "TPR 1%",
    "lira_tpr01": "TPR .1%",
    "seconds": "seconds",
}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--methods", default="map,stf,ensemble,mean-field-vi")
    parser.add_argument("--seeds", type=int, default=3, help="0: LiRA alone")
    parser.add_argument("--epochs", type=int, default=120, help="of MAP and of each member")
    parser.add_argument("--examples", type=int, default=1000, help="members, and non-members")
    parser.add_argument("--lira", type=Path, help="folder of shadow posteriors; none: no LiRA")
    parser.add_argument("--lira-examples", type=int, default=1000, help="pool, half of it members")
    parser.add_argument("--shadows", type=int, default=16)
    options = parser.parse_args()
    splits = bayesify.data.splits(options.data, data_dir=options.data_dir)
    methods = method_of(options.epochs)
    chosen = options.methods.split(",")
    for seed in range(options.seeds):
        for name in chosen:
            if not find(read(options.out), case(options, name, seed)):
                found = measure(splits, methods[name], options, seed)
                append(options.out, case(options, name, seed) | found)
    for name in chosen if options.lira else []:
        if not find(read(options.out), lira_case(options, name)):
            found = attack(splits, methods[name], options, options.lira / name)
            append(options.out, lira_case(options, name) | found)
    lines = read(options.out)
    rows = {
        name: [
            line for seed in range(options.seeds) for line in find(lines, case(options, name, seed))
        ]
        for name in chosen
    }
    if options.seeds:
        print(f"{options.data}, {options.examples} members, {options.epochs} epochs")
        table(rows, COLUMNS)
    if options.lira:
        print(f"\nLiRA, {options.shadows} shadows, a pool of {options.lira_examples}")
        table({name: find(lines, lira_case(options, name)) for name in chosen}, LIRA_COLUMNS)


def method_of(epochs: int) -> dict[str, Method]:
    """Every method with a network that is trained without regularisation."""
    trained = bayesify.MAP(epochs=epochs, prior_scale=PRIOR_SCALE)
    return {
        "map": trained,
        "stf": bayesify.STF(pretrain=trained),
        "ensemble": bayesify.Ensemble(epochs=epochs, prior_scale=PRIOR_SCALE),
        "mean-field-vi": bayesify.MeanFieldVI(pretrain=trained),
    }


def case(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """What tells one line from another."""
    same = {name: getattr(options, name) for name in ("data", "model", "epochs", "examples")}
    return {"attack": "threshold", "method": method, "seed": seed, **same}


def lira_case(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """The same for the likelihood-ratio attack, whose repetitions are its shadows."""
    same = case(options, method, 0) | {"examples": options.lira_examples}
    return same | {"attack": "lira", "shadows": options.shadows}


def measure(
    splits: Splits, method: Method, options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Fit one method to one draw of members, evaluate it and attack it."""
    if 2 * options.examples > len(splits.train):
        raise SystemExit(f"--examples: expected at most {len(splits.train) // 2}.")
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    members = some(splits.train, order[: options.examples])
    others = some(splits.train, order[options.examples : 2 * options.examples])
    net = bayesify.models.build(options.model, splits.input_shape, splits.num_outputs, seed=seed)
    start = time.perf_counter()
    posterior = bayesify.fit(net, members, method, seed=seed)
    seconds = time.perf_counter() - start
    metrics = bayesify.evaluate(posterior, others).metrics
    trained = bayesify.evaluate(posterior, members).metrics
    found = membership(posterior, members, others).metrics
    return {"seconds": seconds, "train_accuracy": trained["accuracy"], **metrics, **found}


def attack(
    splits: Splits, method: Method, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """The likelihood-ratio attack, and a threshold on phi of the very same posteriors."""
    start = time.perf_counter()
    found = shadow_attack(
        lambda seed: bayesify.models.build(
            options.model, splits.input_shape, splits.num_outputs, seed=seed
        ),
        method,
        splits.train,
        shadows=Shadows(count=options.shadows, examples=options.lira_examples),
        out=folder,
        on_fit=lambda shadow: print(f"shadow {shadow} of {options.shadows}", flush=True),
    )
    shelved = [load_file(file) for file in sorted(folder.glob("shadow-*.safetensors"))]
    areas = [attack_auc(s["phi"][s["inside"]], s["phi"][~s["inside"]]) for s in shelved]
    return {
        "seconds": time.perf_counter() - start,
        "threshold_auc": statistics.mean(areas),
        "threshold_auc_se": error(areas),
        **found.metrics,
    }


def some(examples: Examples, index: torch.Tensor) -> Examples:
    """The examples of these indices."""
    return replace(examples, x=examples.x[index], y=examples.y[index])


def read(file: Path) -> list[dict[str, Any]]:
    """All lines so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def find(lines: list[dict[str, Any]], wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of one case: one or none."""
    return [line for line in lines if wanted.items() <= line.items()]


def append(file: Path, line: dict[str, Any]) -> None:
    """Write one line, and say so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        opened.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def table(rows: dict[str, list[dict[str, Any]]], columns: dict[str, str]) -> None:
    """Means and standard errors over lines; a single line shows its own standard error."""
    print(f"{'':14}" + "".join(f"{title:>16}" for title in columns.values()))
    for name, lines in rows.items():
        cells = []
        for column in columns:
            values = [line[column] for line in lines if column in line]
            if not values:
                cells.append("-")
                continue
            spread = error(values) if len(values) > 1 else lines[0].get(f"{column}_se")
            digits = 0 if column == "seconds" else 3
            shown = "" if spread is None else f"±{spread:.{digits}f}"
            cells.append(f"{statistics.mean(values):.{digits}f}{shown}")
        print(f"{name:14}" + "".join(f"{cell:>16}" for cell in cells))


def error(values: list[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5


if __name__ == "__main__":
    main()
