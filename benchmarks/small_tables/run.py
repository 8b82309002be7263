"""BALI at its defaults on small tables, beside ridge regression and a Gaussian process.

    python -m benchmarks.small_tables.run --data-dir DIR [--tables 200] [--out results.jsonl]

Tables of 5 to 300 rows: synthetic (a line, a sine, noise alone), scikit-learn's diabetes, and rows
of the UCI sets in DIR; a ReLU network with one hidden layer of 16, 64 or 256; inputs and targets
standardised on the training rows, up to 300 test rows. A line of JSON for each table, written as it
is done, and medians at the end: test NLL minus that of scikit-learn's Gaussian process (RBF and
white noise, optimised), and the predictive's median standard deviation over the residuals of ridge
regression (leave-one-out).
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeCV
from torch import nn

import bayesify

ROWS, WIDTHS = (5, 10, 20, 40, 60, 100, 200, 300), (64, 16, 256)
SOURCES = ("line", "sine", "noise", "diabetes", "boston", "concrete", "energy", "wine", "yacht")
INPUTS, TEST = 5, 300


def table(source: str, rows: int, seed: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, standardised on the first `rows`, which are for training."""
    random = np.random.default_rng([seed, rows, SOURCES.index(source)])
    count = rows + TEST
    if source in ("line", "sine", "noise"):
        x = random.normal(size=(count, INPUTS))
        slope = random.normal(size=INPUTS) / np.sqrt(INPUTS)
        mean = {"line": x @ slope, "sine": np.sin(1.5 * x[:, 0]), "noise": 0 * x[:, 0]}[source]
        y = mean + 0.3 * random.normal(size=count)
    else:
        if source == "diabetes":
            x, y = load_diabetes(return_X_y=True)
        else:
            held = np.load(folder / f"uci_{source}.npz")
            x, y = held["x"], held["y"].reshape(-1)
        chosen = random.permutation(len(x))[:count]
        x, y = x[chosen], y[chosen]
    spread = x[:rows].std(0)
    x = (x - x[:rows].mean(0)) / np.where(spread > 0, spread, 1)
    return x, (y - y[:rows].mean()) / (y[:rows].std() or 1)


def others(x: np.ndarray, y: np.ndarray, rows: int) -> dict[str, float]:
    """Ridge regression's residuals, and the Gaussian process's test NLL."""
    ridge = RidgeCV(np.logspace(-3, 3, 25), store_cv_results=True).fit(x[:rows], y[:rows])
    kernel = ConstantKernel(1.0) * RBF(np.sqrt(x.shape[1]), (1e-2, 1e3))
    process = GaussianProcessRegressor(
        kernel + WhiteKernel(0.1, (1e-4, 10)), n_restarts_optimizer=2, random_state=0
    )
    mean, scale = process.fit(x[:rows], y[:rows]).predict(x[rows:], return_std=True)
    nll = 0.5 * np.log(2 * np.pi * scale**2) + 0.5 * ((y[rows:] - mean) / scale) ** 2
    return {"ridge": float(np.sqrt(ridge.cv_results_.mean(0).min())), "gp_nll": float(nll.mean())}


def fitted(x: np.ndarray, y: np.ndarray, rows: int, width: int, seed: int) -> dict[str, float]:
    """BALI's test NLL and median predictive standard deviation."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, 1))
    inputs, target = torch.tensor(x).float(), torch.tensor(y).float()[:, None]
    train = (inputs[:rows], target[:rows])
    posterior = bayesify.fit(net, train, bayesify.BALI(), likelihood="gaussian", seed=seed)
    predictive = posterior.predict(inputs[rows:], num_samples=100)
    return {
        "nll": -predictive.log_prob(target[rows:]).mean().item(),
        "spread": predictive.variance.sqrt().median().item(),
    }


def main() -> None:
    """Run the tables and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--out", type=Path, default=Path("bali_small_tables.jsonl"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    lines = []
    for number in range(options.first, options.first + options.tables):
        rows, source = ROWS[number % len(ROWS)], SOURCES[number % len(SOURCES)]
        width, seed = WIDTHS[number // len(ROWS) % len(WIDTHS)], number // 72
        x, y = table(source, rows, seed, options.data_dir)
        line = {"source": source, "rows": rows, "width": width, "seed": seed}
        line |= others(x, y, rows)
        try:
            line |= fitted(x, y, rows, width, seed)
        except bayesify.BayesifyError as error:
            line |= {"error": str(error)}
        lines.append(line)
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    done = [line for line in lines if "nll" in line]
    behind = np.array([line["nll"] - line["gp_nll"] for line in done])
    ratio = np.array([line["spread"] / line["ridge"] for line in done])
    outside = (ratio > 3) | (ratio < 1 / 3)
    print(
        f"{len(lines)} tables, {len(lines) - len(done)} errors, {(~np.isfinite(behind)).sum()} not"
    )
    print(
        f"finite; NLL minus the process's: median {np.median(behind):.3f}, {behind.max():.2f} most"
    )
    print(f"spread over ridge's: median {np.median(ratio):.2f}, {outside.sum()} outside 1/3..3")


if __name__ == "__main__":
    main()
