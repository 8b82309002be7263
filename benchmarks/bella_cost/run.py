"""What Bella costs: memory, training steps and predictions as ratios, all measured in this one run.

    python -m benchmarks.bella_cost.run [--json] [--repetitions N] [--threads T] [--clock cpu]

Every ratio is of medians over interleaved repetitions, so that a machine whose speed drifts slows
both sides; of a loop over M dense or LoRA networks one turn is timed, of each network in its turn,
and taken M times. The transformer is a BERT of the size of all-MiniLM (hidden 384, MLP 1536, 12
heads, 64 tokens) with random weights and a vocabulary of 8,000; members differ at rank 4 in the two
matrices of each MLP. Compared are, for M = 5 unless said,

- memory: the peak of a prediction with M = 10 and M = 1, in processes of their own, and what is
  held between two training steps, against M dense networks;
- a training step at batch 16 with M dense networks and with M LoRA adapters of peft; and around a
  base in bfloat16, with dense networks in single precision and under autocast;
- `predict` at batch 1 and 16 with the forward passes of M dense networks;
- both with 8 layers and adapters in the last 2, at batches 1, 16 and 64: what comes before them is
  computed once for all members, or kept across epochs;
- a step of one member of rank 1 on ResNet-20 at batch 64 with a dense step, beside the time that
  the arithmetic alone takes; with the weights of convolutions formed, and by factors.
"""

import argparse
import copy
import ctypes
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks.bella_cost.networks import (
    MEMBERS,
    BertConfig,
    adapted,
    at_once,
    batch_of,
    dense_member,
    dense_members,
    in_turns,
    lora_members,
    members_around,
    merged,
    own_batches,
    start,
    stepping,
    summary,
    times_members,
    transformer,
)
from benchmarks.bella_cost.tables import ratios, show
from benchmarks.measuring import (
    CLOCKS,
    gigaflops,
    held_bytes,
    load,
    machine,
    peak_gigaflops,
    status,
    timed,
)
from torch import Tensor, nn
from torch.nn import functional as F

import bayesify
from bayesify.forward.outputs import read_tensor
from bayesify.weights import low_rank
from bayesify.weights.low_rank import LowRankWeight

LOOSE_RANK = 16
"""Of the memory measurement: factors that are visible beside the noise of an allocator."""
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""As it comes, glibc keeps freed blocks by a threshold that moves with what was freed, and the peak
of a process grows with the number of calls before it, by tens of MB, until it settles. With this
every activation goes back to the kernel at once: the peak is that of what is alive."""
DEEP, LAST = 8, 2
"""Layers of the trunk measurement, and how many of them differ."""
PARTS = ("memory", "step", "half", "predict", "trunk", "resnet")


def main() -> None:
    """Measure everything and print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repetitions", type=int, default=9, help="of every timing (default 9)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="which (all)")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=tuple(CLOCKS),
        help="what is timed: cpu, with one thread, says more on a machine that others use",
    )
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.probe:
        print(json.dumps(probe(options.probe)))
        return
    clock = CLOCKS[options.clock]

    def measured(work: dict[str, Callable[[], Any]]) -> dict[str, float]:
        return timed(work, options.repetitions, clock)

    parts = {
        "memory": lambda: memory_costs(options.repetitions, options.threads),
        "step": lambda: step_costs(measured),
        "half": lambda: half_costs(measured),
        "predict": lambda: [predict_cost(batch, measured) for batch in (1, 16)],
        "trunk": lambda: [trunk_costs(batch, measured) for batch in (1, 16, 64)],
        "resnet": lambda: resnet_costs(measured),
    }
    facts = machine(options.threads) | {"clock": options.clock, "load": load()}
    facts |= {"gigaflops": peak_gigaflops(measured), "network": "BERT" if BertConfig else "torch"}
    result: dict[str, Any] = {"machine": facts}
    for name in options.parts:
        result[name] = parts[name]()
        gc.collect()
    facts["load_at_end"] = load()
    result["ratios"] = ratios(result)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


# --- what is measured -----------------------------------------------------------------------------


def memory_costs(repetitions: int, threads: int) -> dict[str, Any]:
    """Bytes, each in a process of its own that has done nothing else."""

    def own(name: str, environment: dict[str, str]) -> dict[str, int]:
        program = [
            sys.executable,
            "-m",
            "benchmarks.bella_cost.run",
            "--probe",
            name,
            "--threads",
            str(threads),
        ]
        done = subprocess.run(
            program, env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    def growth(environment: dict[str, str]) -> dict[str, float]:
        """Median bytes that nine members more take."""
        found: dict[int, list[dict[str, int]]] = {1: [], 10: []}
        for _ in range(min(repetitions, 5)):
            for members, each in found.items():
                each.append(own(f"predict:{members}", environment))
        one, ten = (
            {key: statistics.median(each[key] for each in found[m]) for key in found[m][0]}
            for m in (1, 10)
        )
        return {key: ten[key] - one[key] for key in one}

    held = {what: own(f"held:{what}", {})["held"] for what in ("none", "bella", "dense")}
    return {
        "growth": {"as it comes": growth({}), "returns memory": growth(RETURNING)},
        "held": held,
        "held_beyond_network_per_member": (held["bella"] - held["none"]) / MEMBERS,
        "held_over_dense": held["bella"] / held["dense"],
    }


def probe(what: str) -> dict[str, int]:
    """Inside a process of its own: what one prediction needs at most, or what training holds."""
    kind, _, value = what.partition(":")
    net = transformer()
    if kind == "held":
        x, y = batch_of(16)
        held: list[Any] = [net]
        if value == "bella":
            run = start(net, x)
            run.step(x, y)
            held.append(run)
        elif value == "dense":
            held = [dense_member(copy.deepcopy(net)) for _ in range(MEMBERS)]
            del net
            for step in held:
                step(x, y)
        gc.collect()
        return {"held": held_bytes()}
    q = members_around(net, adapted(), members=int(value), rank=LOOSE_RANK)
    posterior = bayesify.WeightPosterior(net, q, bayesify.Categorical())
    x, _ = batch_of(16)
    posterior.predict(x, chunk_size=1)
    first = status("VmHWM")  # with all that making the network and the members took
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    posterior.predict(x, chunk_size=1)
    return {
        "factors": sum(each.numel() * each.element_size() for each in q.parameters()),
        "peak": first,
        "later_peak": status("VmHWM"),
    }


def step_costs(measured: Callable[..., Any]) -> dict[str, Any]:
    """A training step at batch 16."""
    x, y = batch_of(16)
    net = transformer()
    work = {
        "bella": stepping(start(copy.deepcopy(net), x), x, y),
        "bella, own batches": stepping(own_batches(net, x), x, y),
        "bella one by one": stepping(start(copy.deepcopy(net), x, vectorize=False), x, y),
        "bella at once": stepping(at_once(start(copy.deepcopy(net), x)), x, y),
        "dense": in_turns(dense_members(net), x, y),
    }
    if lora := lora_members(net):
        work["lora"] = in_turns(lora, x, y)
    flops = {name: gigaflops(each) for name, each in work.items()}
    learnt = start(copy.deepcopy(net), x).posterior().trainable_parameters // MEMBERS
    return {
        **summary(work, measured),
        "gigaflops": times_members(flops),
        "trainable_per_member": learnt,
        "dense_member": sum(each.numel() for each in net.parameters()),
    }


def half_costs(measured: Callable[..., Any]) -> dict[str, Any]:
    """A step around a base that is stored in bfloat16, which weights that are trained cannot be."""
    x, y = batch_of(16)
    net = transformer()
    work = {
        "bella": stepping(start(copy.deepcopy(net).bfloat16(), x), x, y),
        "dense": in_turns(dense_members(net), x, y),
        "autocast": in_turns([under_autocast(each) for each in dense_members(net)], x, y),
    }
    flops = {name: gigaflops(each) for name, each in work.items()}
    return {**summary(work, measured), "gigaflops": times_members(flops)}


def under_autocast(step: Callable[..., None]) -> Callable[..., None]:
    """Products in bfloat16, weights and their Adam in single precision."""

    def stepped(x: Any, y: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step(x, y)

    return stepped


@torch.no_grad()
def predict_cost(batch: int, measured: Callable[..., Any]) -> dict[str, Any]:
    """`predict` against the plain forward passes of the dense networks that the members are."""
    net = transformer()
    return {"batch": batch, **prediction(net, adapted(), batch, measured)}


def prediction(
    net: nn.Module, where: bayesify.core.types.Where, batch: int, measured: Callable[..., Any]
) -> dict[str, Any]:
    """Milliseconds and ratios of `predict`."""
    x, _ = batch_of(batch)
    q = members_around(net, where)
    posterior = bayesify.WeightPosterior(net, q, bayesify.Categorical())
    dense = merged(net, q)

    def loop() -> Tensor:
        with torch.no_grad():
            return torch.stack([read_tensor(each(**x)) for each in dense])

    torch.testing.assert_close(posterior.predict(x).logits, loop(), atol=1e-4, rtol=1e-3)
    turns = itertools.cycle(dense)

    @torch.no_grad()
    def turn() -> Tensor:
        return read_tensor(next(turns)(**x))

    work = {
        "bella": lambda: posterior.predict(x),
        "bella one by one": lambda: posterior.predict(x, chunk_size=1),
        "bella at once": lambda: posterior.predict(x, chunk_size=MEMBERS),
        "dense": turn,
    }
    with torch.no_grad():
        flops = {name: gigaflops(each) for name, each in work.items()}
    return {**summary(work, measured), "gigaflops": times_members(flops)}


def trunk_costs(batch: int, measured: Callable[..., Any]) -> dict[str, Any]:
    """Members that differ in the last blocks only."""
    x, y = batch_of(batch)
    net, where = transformer(DEEP), adapted(DEEP, LAST)
    kept = {"where": where, "num_data": 1024, "cache_features": True}
    cached, own_cached = start(copy.deepcopy(net), x, **kept), own_batches(net, x, **kept)
    for each in (cached, own_cached):
        each.step(x, y)
        each.end_epoch(0)
    whole = start(copy.deepcopy(net), x, where=where, vectorize=False)
    whole._terms.trunk = None
    work = {
        "bella": stepping(start(copy.deepcopy(net), x, where=where), x, y),
        "bella, own batches": stepping(own_batches(net, x, where=where), x, y),
        "bella one by one": stepping(
            start(copy.deepcopy(net), x, where=where, vectorize=False), x, y
        ),
        "bella at once": stepping(at_once(start(copy.deepcopy(net), x, where=where)), x, y),
        "bella cached": stepping(cached, x, y),
        "bella cached, own batches": stepping(own_cached, x, y),
        "bella whole network": stepping(whole, x, y),
        "dense": in_turns(dense_members(net), x, y),
    }
    if lora := lora_members(net, DEEP, LAST):
        work["lora"] = in_turns(lora, x, y)
    flops = {name: gigaflops(each) for name, each in work.items()}
    step = {**summary(work, measured), "gigaflops": times_members(flops)}
    del work, lora, cached, own_cached, whole
    gc.collect()
    return {"batch": batch, "step": step, "predict": prediction(net, where, batch, measured)}


def resnet_costs(measured: Callable[..., Any]) -> dict[str, Any]:
    """One member of rank 1, with gains and biases, on ResNet-20 at batch 64."""
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    net = bayesify.models.build("resnet20", (3, 32, 32), 10, seed=0).eval()
    options = {"where": bayesify.all_weights, "members": 1, "rank": 1, "vectors": True}

    def bella() -> Callable[[], Any]:
        return stepping(start(copy.deepcopy(net), x, **options), x, y)

    def ruled(rule: Any) -> Callable[[], Any]:
        step = bella()

        def stepped() -> None:
            with rule():
                step()

        return stepped

    dense = dense_member(copy.deepcopy(net).requires_grad_(True))
    work = {
        "bella": bella(),
        "bella formed": ruled(lambda: mock.patch.object(low_rank, "POINTWISE", {})),
        "bella by factors": ruled(lambda: mock.patch.object(LowRankWeight, "act", by_factors)),
        "dense": lambda: dense(x, y),
        "forward": torch.no_grad()(lambda: net(x)),
    }
    flops = {name: gigaflops(each) for name, each in work.items()}
    milliseconds = measured(work)
    q = start(copy.deepcopy(net), x, **options).posterior()
    rate = peak_gigaflops(measured)
    return {
        "milliseconds": milliseconds,
        "bella_over_dense": milliseconds["bella"] / milliseconds["dense"],
        "formed_over_factors": milliseconds["bella formed"] / milliseconds["bella by factors"],
        "gigaflops": flops,
        "gigaflops_per_second_of_gemm": rate,
        "floor_milliseconds": {name: 1000 * each / rate for name, each in flops.items()},
        "trainable_per_member": q.trainable_parameters,
        "dense_member": sum(each.numel() for each in net.parameters()),
    }


def by_factors(self: LowRankWeight, op: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """`LowRankWeight.act` that never forms a weight."""
    down, up = self._factors(x.dtype)
    if op.func is F.linear:
        return op(x, self.base, bias) + F.linear(F.linear(x, down), up)
    return op(x, self.base, bias) + self._convolved(op, x, down, up)


if __name__ == "__main__":
    main()
