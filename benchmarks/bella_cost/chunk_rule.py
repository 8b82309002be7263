"""How many samples to run at once: predictions one by one and at once, beside what the rule says.

    python -m benchmarks.bella_cost.chunk_rule --json [--repetitions N]

Bella's transformer (`bella_networks.py`) under low-rank members, by batch, tokens and members; and
a convolutional net of 31 MB whose first layer is random, under 16 samples. One thread, CPU time.
"""

import argparse
import json
import time
from typing import Any

import benchmarks.bella_cost.networks as nets
import torch
from benchmarks.measuring import load, machine, timed
from torch import nn

import bayesify

TEXTS = ((1, 8), (1, 64), (2, 64), (4, 64), (8, 64))
"""Batch and tokens."""
SAMPLES = 16


def main() -> None:
    """Measure, and print one JSON object or a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repetitions", type=int, default=3, help="of every timing (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [*texts(options.repetitions), *images(options.repetitions)]
    facts = machine(1) | {"clock": "cpu", "load": load()}
    if options.json:
        print(json.dumps({"machine": facts, "rows": rows}))
        return
    for row in rows:
        print(row)


def texts(repetitions: int) -> list[dict[str, Any]]:
    """Five and ten members of the transformer."""
    net, rows = nets.transformer(), []
    for members in (5, 10):
        q = nets.members_around(net, nets.adapted(), members=members)
        posterior = bayesify.WeightPosterior(net, q, bayesify.Categorical())
        for batch, tokens in TEXTS:
            x, _ = nets.batch_of(batch, tokens)
            case = {"net": "transformer", "batch": batch, "tokens": tokens}
            rows.append(case | compared(posterior, x, members, repetitions))
    return rows


def images(repetitions: int) -> list[dict[str, Any]]:
    """A random first layer before many that are not."""
    net = convolutional()
    q = bayesify.MeanField.around(net, where=bayesify.first_layer)
    posterior = bayesify.WeightPosterior(net, q, bayesify.Categorical())
    return [
        {"net": "convolutional", "batch": batch}
        | compared(posterior, torch.randn(batch, 3, 32, 32), SAMPLES, repetitions)
        for batch in (1, 4)
    ]


@torch.no_grad()
def compared(posterior: Any, x: Any, samples: int, repetitions: int) -> dict[str, Any]:
    """Milliseconds one by one, at once and by default, and their ratios."""
    chunks = {"one by one": 1, "at once": samples, "default": None}
    found = timed(
        {
            name: lambda chunk=chunk: posterior.predict(x, num_samples=samples, chunk_size=chunk)
            for name, chunk in chunks.items()
        },
        repetitions,
        time.process_time,
    )
    ratios = {f"{name} over one by one": found[name] / found["one by one"] for name in found}
    return {"samples": samples, "milliseconds": found} | ratios


def convolutional() -> nn.Module:
    """Four stages of three convolutions, of 64 to 512 channels."""
    layers: list[nn.Module] = []
    for before, width in ((3, 64), (64, 128), (128, 256), (256, 512)):
        for number in range(3):
            first, stride = number == 0, 2 if number == 0 and before > 3 else 1
            layers += [nn.Conv2d(before if first else width, width, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)).eval()


if __name__ == "__main__":
    main()
