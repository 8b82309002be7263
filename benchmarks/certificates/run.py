"""Certificates of STF on scikit-learn's digits: are they above the true risk, and how tight?

    python -m benchmarks.certificates.run --out runs/certificates [--seeds 20]
    python -m benchmarks.certificates.run --out runs/certificates --report
    python -m benchmarks.certificates.run --out runs/constant --seeds 5 --constant-rate

1,000 digits to learn from, 797 to test on, cut anew for each seed; network 64-100-100-10. The
network and the prior's mean come from the part that does not certify. The prior's width is given
beforehand: N(w*, s0^2). delta = .05, 1,000 weight samples. `--constant-rate` trains as the
prototype did that first gave such numbers: 100 epochs at 1e-2, and no cosine.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from sklearn.datasets import load_digits
from torch import nn

import bayesify
from bayesify.evaluation.guarantees.certificates import sampled_risk

ARMS = {  # share that certifies, width of the prior
    "800 certify, s0 .05": (0.8, 0.05),
    "500 certify, s0 .05": (0.5, 0.05),
    "200 certify, s0 .05": (0.2, 0.05),
    "500 certify, s0 .2": (0.5, 0.2),
}
SCHEDULED, CONSTANT = {"epochs": 60, "lr": 3e-3}, {"epochs": 100, "lr": 1e-2}
COLUMNS = ("kl", "risk", "test", "mcallester", "bound", "catoni")


class Unscheduled(torch.optim.lr_scheduler.LambdaLR):
    """Takes the place of the cosine, and leaves the rate as it is."""

    def __init__(self, optimiser: torch.optim.Optimizer, *_: object, **__: object) -> None:
        super().__init__(optimiser, lambda epoch: 1.0)


def measure(share: float, width: float, seed: int, training: dict[str, Any]) -> dict[str, Any]:
    """One fit, its certificate, and its risk on the test digits."""
    x, y = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = (x / 16).float()[order], y.long()[order]
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)]
    method = bayesify.STF(
        pretrain=bayesify.MAP(**training),
        **training,
        temperature=1.0,
        prior_scale=width,
        prior_relative=False,
        certify_split=share,
    )
    posterior = bayesify.fit(nn.Sequential(*layers), (x[:1000], y[:1000]), method, seed=seed)
    found = bayesify.certify(posterior, (x[:1000], y[:1000]))
    return {
        "kl": found.kl,
        "risk": found.sampled_risk,
        "test": sampled_risk(posterior, (x[1000:], y[1000:])),
        "mcallester": found.mcallester,
        "bound": found.bound,
        "catoni": found.catoni,
    }


def report(lines: list[dict[str, Any]]) -> None:
    """A table of means and standard errors, and how often the bound was above the test risk."""
    print(f"| | {' | '.join(COLUMNS)} | bound above test risk |\n|{'---|' * (len(COLUMNS) + 2)}")
    for arm in ARMS:
        rows = [line for line in lines if line["arm"] == arm]
        if not rows:
            continue
        cells = []
        for name in COLUMNS:
            values = [row[name] for row in rows]
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            digits = 1 if name == "kl" else 3
            cells.append(f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}")
        above = sum(row["bound"] > row["test"] for row in rows)
        print(f"| {arm} | {' | '.join(cells)} | {above} of {len(rows)} |")


def main() -> None:
    """Measure what is missing, then report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--constant-rate", action="store_true")
    asked = parser.parse_args()
    file = Path(asked.out) / "certificates.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(line["arm"], line["seed"]) for line in lines}
    training = CONSTANT if asked.constant_rate else SCHEDULED
    scheduler = Unscheduled if asked.constant_rate else torch.optim.lr_scheduler.CosineAnnealingLR
    for seed in range(0 if asked.report else asked.seeds):
        for arm, (share, width) in ARMS.items():
            if (arm, seed) not in done:
                with patch.object(torch.optim.lr_scheduler, "CosineAnnealingLR", scheduler):
                    found = measure(share, width, seed, training)
                lines.append({"arm": arm, "seed": seed, **found})
                with file.open("a") as stream:
                    stream.write(json.dumps(lines[-1]) + "\n")
    report(lines)


if __name__ == "__main__":
    main()
