"""Where low rank saves time: Bella beside dense networks and LoRA, over the length of texts.

    python -m benchmarks.bella_cost.roofline [--json] [--repetitions N] [--clock cpu]

M = 5 members of the transformer of `bella_cost.py` (rank 4 in the MLPs), predictions at batch 1 and
training steps at batch 16, with texts of 4 to 64 tokens, as many members at once as the default
says. A member costs as much arithmetic as a dense network, in training two thirds of it; what it
saves is memory traffic: the base is read once for all members at once, and nothing of its size is
updated. Beside the ratio of times stand two others,

    by arithmetic = flops of Bella / flops of M dense          (what many tokens tend to)
    by traffic    = bytes of Bella / bytes of M dense          (what few tokens tend to)

and what the machine needs for the dense networks at least, max(flops / speed, bytes / bandwidth),
with both measured here. Bytes are those of weights, not of activations: read in each pass, forward
and backward, and in a step of Adam a gradient written and read, weight and two moments read and
written. Flops are counted with the scores of attention formed, which both sides then count alike.
"""

import argparse
import copy
import itertools
import json
import math
from typing import Any

import benchmarks.bella_cost.networks as nets
import torch
from benchmarks.measuring import CLOCKS, gigaflops, load, machine, peak_gigaflops, timed
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import bayesify
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.forward.chunking import Footprint, default_chunk_size
from bayesify.forward.outputs import read_tensor

TOKENS = (4, 8, 16, 32, 64)
PASSES = {"predict": (1, 0), "step": (2, 8)}
"""How often a weight is moved: in the passes, and as one that is learnt (gradient and Adam)."""


def main() -> None:
    """Measure both, at every length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repetitions", type=int, default=7, help="of every timing (default 7)")
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    options = parser.parse_args()
    torch.set_num_threads(1)

    def measured(work: dict[str, Any]) -> dict[str, float]:
        return timed(work, options.repetitions, CLOCKS[options.clock])

    speed, bandwidth = peak_gigaflops(measured), peak_gigabytes(measured)
    facts = machine(1) | {"clock": options.clock, "load": load()}
    rows = [
        row(what, tokens, measured, speed, bandwidth)
        for what in ("predict", "step")
        for tokens in TOKENS
    ]
    result = {"machine": facts | {"GFLOP/s": speed, "GB/s": bandwidth}, "rows": rows}
    print(json.dumps(result)) if options.json else show(result)


def row(
    what: str, tokens: int, measured: Any, speed: float, bandwidth: float
) -> dict[str, float | str | None]:
    """One comparison, and its bounds."""
    net = nets.transformer()
    x, y = nets.batch_of(1 if what == "predict" else 16, tokens)
    work = predicting(net, x) if what == "predict" else stepping(net, x, y)
    for each in work.values():
        each()  # the first call also looks at the network
    with sdpa_kernel(SDPBackend.MATH):
        flops = nets.times_members({name: gigaflops(each) for name, each in work.items()})
    q = nets.members_around(net, nets.adapted())
    at_once = default_chunk_size(Footprint.of(net, q, x), x, torch.device("cpu"), nets.MEMBERS)
    moved = traffic(net, q, what, math.ceil(nets.MEMBERS / at_once))
    found = nets.times_members(measured(work))
    least = max(flops["dense"] / speed, moved["dense"] / bandwidth)
    return {
        "what": what,
        "tokens of a text": tokens,
        "members at once": at_once,
        "milliseconds dense": found["dense"],
        "milliseconds bella": found["bella"],
        "over dense": found["bella"] / found["dense"],
        "over LoRA": found["bella"] / found["lora"] if "lora" in found else None,
        "by arithmetic": flops["bella"] / flops["dense"],
        "by traffic": moved["bella"] / moved["dense"],
        "roofline milliseconds dense": 1000 * least,
        "roofline bound by": "arithmetic" if least == flops["dense"] / speed else "traffic",
    }


def predicting(net: torch.nn.Module, x: dict[str, Tensor]) -> dict[str, Any]:
    """`predict` as it comes, and the next of M dense networks."""
    posterior = bayesify.WeightPosterior(
        net, nets.members_around(net, nets.adapted()), bayesify.Categorical()
    )
    turns = itertools.cycle([copy.deepcopy(net) for _ in range(nets.MEMBERS)])

    @torch.no_grad()
    def one() -> Tensor:
        return read_tensor(next(turns)(**x))

    return {"bella": torch.no_grad()(lambda: posterior.predict(x)), "dense": one}


def stepping(net: torch.nn.Module, x: dict[str, Tensor], y: Tensor) -> dict[str, Any]:
    """A step of all members as it comes, and of the next of M dense networks or LoRA adapters."""
    work = {
        "bella": nets.stepping(nets.start(copy.deepcopy(net), x), x, y),
        "dense": nets.in_turns(nets.dense_members(net), x, y),
    }
    if lora := nets.lora_members(net):
        work["lora"] = nets.in_turns(lora, x, y)
    return work


def traffic(net: torch.nn.Module, q: LowRankParticles, what: str, calls: int) -> dict[str, float]:
    """Gigabytes of weights moved by M dense networks, and by M members in so many calls.

    Of embeddings a few rows are read, but Adam moves them all.
    """
    tables = [each for name, each in net.named_parameters() if "embedding" in name]
    weights = 4e-9 * sum(each.numel() for each in net.parameters())
    table = 4e-9 * sum(each.numel() for each in tables)
    factors = 4e-9 * sum(each.numel() for each in q.parameters())
    passes, learnt = PASSES[what]
    return {
        "dense": nets.MEMBERS * (passes * (weights - table) + learnt * weights),
        "bella": calls * passes * (weights - table) + (passes + learnt) * factors,
    }


def peak_gigabytes(measured: Any) -> float:
    """Per second, of a matrix as large as M networks, times a vector: each number is read once."""
    rows = 11 * 1024 * nets.MEMBERS
    matrix, vector = torch.ones(rows, 1024), torch.ones(1024)
    return 4e-9 * matrix.numel() / (measured({"mv": lambda: matrix @ vector})["mv"] / 1000)


def show(result: dict[str, Any]) -> None:
    """A table for a person."""
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    columns = list(result["rows"][0])
    table = Table(*columns)
    for each in result["rows"]:
        table.add_row(
            *(f"{v:.3g}" if isinstance(v, float) else str(v or "") for v in each.values())
        )
    console.print(table)


if __name__ == "__main__":
    main()
