"""What a full evaluation costs: a Bayesian ResNet-20 on 1,017 CIFAR-10 images.

    python -m benchmarks.evaluation_cost.run --images cifar10_prefix.npz --weights FILE.safetensors

STF's posterior around a published network (scales of .05 of the layer's root mean square, as at
the start of its training: what is learnt does not change the price), S = 16. Seconds and FLOPs of
each part; attacks on all images at one radius, their gradients in bfloat16 unless told otherwise,
corruptions of 100 images by all families. `--only attacks --precision float32 --eps 1` compares.
`--at-once` asks for everything in one call, as a user would: the predictions are then made once.
`--flops` counts operations in place of judging the seconds: torch's counter slows bfloat16 by a
quarter.
"""

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import bayesify
from bayesify.data.loading import evenly, subset
from bayesify.training.cost import FlopCounter

NUM_SAMPLES, PIXEL = 16, 1 / 255


def main() -> None:
    """Measure each part, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--eps", type=float, default=8, help="radius in grey levels of 255")
    parser.add_argument("--only", default="", help="beginning of the name of the parts wanted")
    parser.add_argument("--at-once", action="store_true", help="all parts in one call")
    parser.add_argument("--flops", action="store_true", help="count operations (slower)")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    splits = bayesify.data.splits(asked.images)
    net = bayesify.models.build("resnet20", splits.input_shape, splits.num_outputs, seed=0)
    bayesify.models.load_weights(net, asked.weights)
    q = bayesify.MeanField.around(net, where=bayesify.first_layer, scale=0.05, relative=True)
    posterior = bayesify.WeightPosterior(
        net.eval().requires_grad_(False), q, bayesify.Categorical()
    )
    q.requires_grad_(False)
    members = subset(splits.train, evenly(len(splits.train), len(splits.test)))
    attacks = bayesify.Attacks(eps=(asked.eps * PIXEL,), examples=None, precision=asked.precision)
    parts: dict[str, dict[str, Any]] = {
        "quality and foreign data": {"ood": bayesify.data.ood("photos", splits)},
        "membership": {"members": members},
        "corruptions of 100": {"corruptions": bayesify.Corruptions(examples=100)},
        f"attacks: FGSM, PGD-10 with 20 samples, {asked.precision}": {"attacks": attacks},
        "far away": {"far_away": True},
    }
    parts = {name: each for name, each in parts.items() if name.startswith(asked.only)}
    if asked.at_once:
        parts = {"at once": {key: each for part in parts.values() for key, each in part.items()}}
    found: dict[str, dict[str, float]] = {}
    for name, options in parts.items():
        start = time.perf_counter(), time.process_time()
        with FlopCounter() if asked.flops else nullcontext() as counter:
            result = bayesify.evaluate(posterior, splits.test, num_samples=NUM_SAMPLES, **options)
        found[name] = {
            "seconds": time.perf_counter() - start[0],
            "cpu_seconds": time.process_time() - start[1],
        }
        if counter is not None:
            found[name]["teraflops"] = counter.total / 1e12
        print(name, {key: round(value, 1) for key, value in found[name].items()}, flush=True)
        print({key: round(value, 4) for key, value in result.metrics.items()}, flush=True)
    total = {key: sum(each[key] for each in found.values()) for key in next(iter(found.values()))}
    print("in all", {key: round(value, 1) for key, value in total.items()})
    if asked.json:
        asked.json.write_text(
            json.dumps({"threads": asked.threads, **found, "in all": total}, indent=1)
        )


if __name__ == "__main__":
    main()
