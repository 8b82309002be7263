"""What STF costs: training steps and predictions as ratios, all measured in this one run.

    python -m benchmarks.stf_cost.run [--json]

Every ratio is of medians over interleaved repetitions, so that a machine whose speed drifts slows
both sides. Compared are

- a training step of STF with one of MAP, and with a bare torch loop, on ResNet-20 at batch 128,
  under glibc's allocator as it comes and as it is when told to keep freed memory (see `KEEPING`);
- `predict` with S = 16 samples with the plain loop `for s: model(x)` under each sample's weights,
  at batch sizes 1, 16 and 128, for an MLP, a CNN, a small transformer and ResNet-20;
- `import bayesify` with `import torch`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.measuring import machine, timed
from rich.console import Console
from rich.table import Table
from torch.func import functional_call
from torch.nn import functional as F

import bayesify
from bayesify.forward.outputs import read_tensor
from bayesify.training.data import TrainingData

SAMPLES = 16
KEEPING = {"MALLOC_MMAP_THRESHOLD_": "2147483648", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
"""As it comes, glibc hands large blocks back to the kernel at times that depend on all that ran
before, and a step then pays for fresh pages: up to a fifth of its time, by chance. Keeping them,
as torch's tuning guide advises (there by another allocator), leaves the arithmetic."""
NETS = {  # name -> input shape
    "mlp": (1, 8, 8),
    "cnn": (3, 32, 32),
    "vit": (3, 32, 32),
    "resnet20": (3, 32, 32),
}


def main() -> None:
    """Measure everything and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repetitions", type=int, default=9, help="of every timing (default 9)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--only-step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only_step:
        print(json.dumps(step_costs(options.repetitions)))
        return
    result = {
        "machine": machine(options.threads),
        "step": {
            "allocator as it comes": in_own_process({}),
            "allocator keeps memory": in_own_process(KEEPING),
        },
        "predict": [
            predict_cost(name, batch, options.repetitions)
            for name in NETS
            for batch in (1, 16, 128)
        ],
        "import": import_cost(options.repetitions),
    }
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


def in_own_process(environment: dict[str, str]) -> dict[str, Any]:
    """`step_costs` of a process of its own, which has done nothing else before."""
    program = [sys.executable, *sys.argv, "--only-step"]
    done = subprocess.run(
        program, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def step_costs(repetitions: int) -> dict[str, Any]:
    """Milliseconds and ratios of one training step on ResNet-20 at batch 128."""
    x, y = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    stf, mode = start(bayesify.STF(), x), start(bayesify.MAP(), x)
    medians = timed(
        {
            "stf": lambda: stf.step(x, y),
            "map": lambda: mode.step(x, y),
            "torch": bare_step(x, y),
        },
        repetitions,
    )
    net = bayesify.models.build("resnet20", (3, 32, 32), 10)
    first = sum(dict(net.named_parameters())[n].numel() for n in bayesify.first_layer(net, x[:1]))
    return {
        "milliseconds": medians,
        "stf_over_map": medians["stf"] / medians["map"],
        "stf_over_torch": medians["stf"] / medians["torch"],
        "trainable": stf.posterior().trainable_parameters,
        "first_layer": first,
        "whole_net": sum(each.numel() for each in net.parameters()),
    }


def start(method: bayesify.Method, x: torch.Tensor) -> bayesify.Run:
    """A run of `method` on a fresh ResNet-20."""
    return method.start(
        bayesify.Problem(
            model=bayesify.models.build("resnet20", (3, 32, 32), 10, seed=0),
            likelihood=bayesify.Categorical(),
            data=TrainingData.of(
                lambda: iter([(x, torch.zeros(len(x), dtype=torch.long))]),
                num_data=50_000,
                steps_per_epoch=1000,
                example=x[:1],
            ),
            readout=read_tensor,
            vectorize=True,
            generator=torch.Generator().manual_seed(0),
        )
    )


def bare_step(x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Ordinary training without bayesify, with the same optimiser."""
    net = bayesify.models.build("resnet20", (3, 32, 32), 10, seed=0).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-5, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()

    return step


@torch.no_grad()
def predict_cost(name: str, batch: int, repetitions: int) -> dict[str, Any]:
    """`predict` of an STF posterior against the plain loop over the same samples."""
    shape = NETS[name]
    net = bayesify.models.build(name, shape, 10, seed=0).eval()
    x = torch.randn(batch, *shape)
    q = bayesify.MeanField.around(net, where=bayesify.first_layer, scale=0.1, example=x[:1])
    posterior = bayesify.WeightPosterior(net, q, bayesify.Categorical())

    def loop() -> bayesify.ClassPredictive:
        draws = q.sample(SAMPLES, generator=torch.Generator().manual_seed(0))
        logits = [
            functional_call(net, {n: each[s] for n, each in draws.items()}, (x,))
            for s in range(SAMPLES)
        ]
        return bayesify.ClassPredictive(torch.stack(logits))

    torch.testing.assert_close(
        posterior.predict(x, num_samples=SAMPLES).probs, loop().probs, atol=1e-5, rtol=1e-4
    )
    medians = timed(
        {"predict": lambda: posterior.predict(x, num_samples=SAMPLES), "loop": loop}, repetitions
    )
    return {
        "model": name,
        "batch": batch,
        "milliseconds": medians,
        "predict_over_loop": medians["predict"] / medians["loop"],
    }


def import_cost(repetitions: int) -> dict[str, float]:
    """Seconds that bayesify, with all a fit needs, adds to `import torch`; in fresh processes."""
    program = (
        "import time; import torch; start = time.perf_counter(); import bayesify; "
        "bayesify.fit, bayesify.STF, bayesify.load; print(time.perf_counter() - start)"
    )
    seconds = [
        float(
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
        )
        for _ in range(min(repetitions, 3))
    ]
    return {"seconds_beyond_torch": statistics.median(seconds)}


def show(result: dict[str, Any]) -> None:
    """Two tables for a person."""
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    table = Table(
        "training step, ResNet-20, batch 128", "STF ms", "MAP ms", "torch ms", "STF / MAP"
    )
    for allocator, step in result["step"].items():
        ms = [f"{step['milliseconds'][name]:.0f}" for name in ("stf", "map", "torch")]
        table.add_row(allocator, *ms, f"{step['stf_over_map']:.2f}")
    console.print(table)
    step = result["step"]["allocator keeps memory"]
    console.print(
        f"trainable: {step['trainable']} = 2 x {step['first_layer']} of {step['whole_net']}"
    )
    table = Table("predict, S = 16", "batch", "loop ms", "predict ms", "predict / loop")
    for row in result["predict"]:
        ms = row["milliseconds"]
        table.add_row(
            row["model"],
            str(row["batch"]),
            f"{ms['loop']:.1f}",
            f"{ms['predict']:.1f}",
            f"{row['predict_over_loop']:.2f}",
        )
    console.print(table)
    console.print(f"import: {result['import']['seconds_beyond_torch']:.2f} s beyond torch")


if __name__ == "__main__":
    main()
