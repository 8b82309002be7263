"""What Bella costs: memory, training steps and predictions as ratios, all measured in this one run.

    python benchmarks/bella_cost.py [--json] [--repetitions N] [--threads T] [--clock cpu]

Every ratio is of medians over interleaved repetitions, so that a machine whose speed drifts slows
both sides; of a loop over M dense or LoRA networks one turn is timed, of each network in its turn,
and taken M times. The transformer is a BERT of the size of all-MiniLM (hidden 384, MLP 1536, 12
heads, 64 tokens) with random weights and a vocabulary of 8,000; members differ at rank 4 in the two
matrices of each MLP. Compared are, for M = 5 unless said,

- memory: the peak of a prediction with M = 10 and M = 1, in processes of their own, and what is
  held between two training steps, against M dense networks;
- a training step at batch 16 with M dense networks and with M LoRA adapters of peft;
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from stf_cost import BLOCK, machine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import bayesify
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.forward import read_tensor
from bayesify.weights import low_rank
from bayesify.weights.low_rank import LowRankWeight

try:
    from transformers import BertConfig, BertForSequenceClassification
except ImportError:
    BertConfig = None
try:
    import peft
except ImportError:
    peft = None

MEMBERS, RANK, LAYERS, HIDDEN, MLP, HEADS, TOKENS, VOCABULARY, CLASSES = (
    *(5, 4, 6, 384),
    *(1536, 12, 64, 8000, 6),
)
LOOSE_RANK = 16
"""Of the memory measurement: factors that are visible beside the noise of an allocator."""
KEPT = 16 * TOKENS * HIDDEN * 4
"""Bytes of what the members share of a batch of 16: it is kept from the second member on."""
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""As it comes, glibc keeps freed blocks by a threshold that moves with what was freed, and the peak
of a process grows with the number of calls before it, by tens of MB, until it settles. With this
every activation goes back to the kernel at once: the peak is that of what is alive."""
DEEP, LAST = 8, 2
"""Layers of the trunk measurement, and how many of them differ."""
PARTS = ("memory", "step", "predict", "trunk", "resnet")
TRUNK_GOAL = 0.45


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
        choices=("wall", "cpu"),
        help="what is timed: cpu, with one thread, says more on a machine that others use",
    )
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.probe:
        print(json.dumps(probe(options.probe)))
        return
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]

    def measured(work: dict[str, Callable[[], Any]]) -> dict[str, float]:
        return timed(work, options.repetitions, clock)

    parts = {
        "memory": lambda: memory_costs(options.repetitions, options.threads),
        "step": lambda: step_costs(measured),
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
        program = [sys.executable, __file__, "--probe", name, "--threads", str(threads)]
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
    q = LowRankParticles.around(
        net, where=adapted(), members=int(value), rank=LOOSE_RANK, vectors=False, noise=0.01
    )
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


@torch.no_grad()
def predict_cost(batch: int, measured: Callable[..., Any]) -> dict[str, Any]:
    """`predict` against the plain forward passes of the dense networks that the members are."""
    net = transformer()
    return {"batch": batch, **prediction(net, adapted(), batch, measured)}


def prediction(
    net: nn.Module, where: bayesify.types.Where, batch: int, measured: Callable[..., Any]
) -> dict[str, Any]:
    """Milliseconds and ratios of `predict`."""
    x, _ = batch_of(batch)
    q = LowRankParticles.around(
        net, where=where, members=MEMBERS, rank=RANK, vectors=False, noise=0.01
    )
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
    cached = start(copy.deepcopy(net), x, where=where, num_data=1024, cache_features=True)
    cached.step(x, y)
    cached.end_epoch(0)
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
        "bella whole network": stepping(whole, x, y),
        "dense": in_turns(dense_members(net), x, y),
    }
    if lora := lora_members(net, DEEP, LAST):
        work["lora"] = in_turns(lora, x, y)
    flops = {name: gigaflops(each) for name, each in work.items()}
    step = {**summary(work, measured), "gigaflops": times_members(flops)}
    del work, lora, cached, whole
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


# --- networks and members -------------------------------------------------------------------------


class Encoder(nn.Module):
    """torch's own transformer of the same size, where transformers is not installed."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        block = nn.TransformerEncoderLayer(
            HIDDEN, HEADS, MLP, 0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, C) of the first token."""
        return self.head(self.encoder(self.embedding(input_ids))[:, 0])


def transformer(layers: int = LAYERS) -> nn.Module:
    """Random weights, in eval mode."""
    torch.manual_seed(0)
    if BertConfig is None:
        return Encoder(layers).eval()
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config).eval()


def adapted(layers: int = LAYERS, last: int | None = None) -> bayesify.types.Where:
    """The two matrices of the MLP of each of the last blocks."""
    names = ("intermediate.dense", "output.dense") if BertConfig else ("linear1", "linear2")
    within = "layer" if BertConfig else "layers"
    chosen = range(layers - (last or layers), layers)
    return bayesify.matching(*(f"*.{within}.{i}.{name}.weight" for i in chosen for name in names))


def batch_of(size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and targets."""
    ids = torch.randint(VOCABULARY, (size, TOKENS))
    mask = {"attention_mask": torch.ones_like(ids)}
    return {"input_ids": ids} | mask, torch.randint(CLASSES, (size,))


def start(
    net: nn.Module, x: Any, vectorize: bool = True, num_data: int = 50_000, **options: Any
) -> bayesify.Run:
    """A run of Bella around `net`, which it freezes."""
    settings: dict[str, Any] = {"where": adapted(), "members": MEMBERS, "rank": RANK}
    settings |= {"vectors": False, "batches": "same"} | options
    target = torch.zeros(len(x["input_ids"] if isinstance(x, dict) else x), dtype=torch.long)
    return bayesify.Bella(pretrain=None, **settings).start(
        bayesify.Problem(
            model=net,
            likelihood=bayesify.Categorical(),
            num_data=num_data,
            steps_per_epoch=1000,
            example=x,
            inputs=lambda: iter([x]),
            batches=lambda: iter([(x, target)]),
            readout=read_tensor,
            vectorize=vectorize,
            generator=torch.Generator().manual_seed(0),
        )
    )


def own_batches(net: nn.Module, x: Any, **options: Any) -> bayesify.Run:
    """A run whose members see batches of their own, one by one.

    transformers asks whether a mask hides anything, which `torch.vmap` cannot run for masks of
    different members.
    """
    return start(copy.deepcopy(net), x, vectorize=False, batches="own", **options)


def at_once(run: Any) -> Any:
    """The run, told to run all members in one call."""
    run._terms.chunk_size, run._terms.trunk = MEMBERS, None
    return run


def stepping(run: bayesify.Run, x: Any, y: Tensor) -> Callable[[], Any]:
    """One step of all members."""
    return lambda: run.step(x, y)


def dense_members(net: nn.Module) -> list[Callable[..., None]]:
    """M copies, each with all its weights trained by an Adam of its own."""
    return [dense_member(copy.deepcopy(net)) for _ in range(MEMBERS)]


def dense_member(net: nn.Module) -> Callable[..., None]:
    """Ordinary training of all weights, without bayesify."""
    return training(net.requires_grad_(True), list(net.parameters()))


def lora_members(
    net: nn.Module, layers: int = LAYERS, last: int | None = None
) -> list[Callable[..., None]]:
    """M adapters of peft around one network; none where peft or transformers is not installed."""
    if peft is None or BertConfig is None:
        return []
    targets = [name.removesuffix(".weight") for name in adapted(layers, last)(net, None)]
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
    model = peft.get_peft_model(copy.deepcopy(net), config, adapter_name="member0").eval()
    for member in range(1, MEMBERS):
        model.add_adapter(f"member{member}", config)

    def one(name: str) -> Callable[..., None]:
        own = [each for path, each in model.named_parameters() if f".{name}." in path]
        return training(model, own, lambda: model.set_adapter(name))

    return [one(f"member{member}") for member in range(MEMBERS)]


def training(
    net: nn.Module, learnt: list[Tensor], before: Callable[[], Any] = lambda: None
) -> Callable[..., None]:
    """One step of one network."""
    optimiser = torch.optim.Adam(learnt, lr=1e-4, fused=True)

    def step(x: Any, y: Tensor) -> None:
        before()
        optimiser.zero_grad()
        output = net(**x) if isinstance(x, dict) else net(x)
        F.cross_entropy(read_tensor(output), y).backward()
        optimiser.step()

    return step


def in_turns(steps: list[Callable[..., None]], x: Any, y: Tensor) -> Callable[[], None]:
    """A step of the next member at each call."""
    for step in steps:  # makes the states of the optimisers
        step({name: each[:1] for name, each in x.items()}, y[:1])
    turns = itertools.cycle(steps)
    return lambda: next(turns)(x, y)


def merged(net: nn.Module, q: LowRankParticles) -> list[nn.Module]:
    """The members as dense networks of their own."""
    members = []
    for draw in q.draws(MEMBERS, 1):
        one = {part: {n: each[0] for n, each in named.items()} for part, named in draw.items()}
        weights = {n: w.dense() for n, w in q.weights(one).items()}
        member = copy.deepcopy(net)
        member.load_state_dict(weights, strict=False)
        members.append(member)
    return members


# --- measuring ------------------------------------------------------------------------------------


def summary(work: dict[str, Callable[[], Any]], measured: Callable[..., Any]) -> dict[str, Any]:
    """Milliseconds of M members, and Bella's over those of the others."""
    milliseconds = times_members(measured(work))
    over = {
        f"{name} over {loop}": milliseconds[name] / milliseconds[loop]
        for name in milliseconds
        for loop in ("dense", "lora")
        if loop in milliseconds and name.startswith("bella")
    }
    return {"milliseconds": milliseconds, "ratios": over}


def times_members(found: dict[str, float]) -> dict[str, float]:
    """Of a loop one turn was measured."""
    return {n: each * (MEMBERS if n in ("dense", "lora") else 1) for n, each in found.items()}


def timed(
    work: dict[str, Callable[[], Any]], repetitions: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median milliseconds of each, in interleaved blocks, after a warm-up; as in stf_cost.py."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    calls = {}
    for name, function in work.items():
        function()
        begin = clock()
        function()
        calls[name] = max(1, round(BLOCK / (clock() - begin)))
    for _ in range(repetitions):
        for name, function in work.items():
            begin = clock()
            for _ in range(calls[name]):
                function()
            seconds[name].append((clock() - begin) / calls[name])
    return {name: 1000 * statistics.median(each) for name, each in seconds.items()}


def gigaflops(work: Callable[[], Any]) -> float:
    """Of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def peak_gigaflops(measured: Callable[..., Any]) -> float:
    """Per second, of a large matrix product: as fast as this machine multiplies."""
    size = 1024
    a, b, out = (torch.randn(size, size) for _ in range(3))
    return 2e-9 * size**3 / (measured({"mm": lambda: torch.mm(a, b, out=out)})["mm"] / 1000)


def held_bytes() -> int:
    """Of all tensors that are alive, their gradients included."""
    seen: dict[int, int] = {}
    for each in gc.get_objects():
        if isinstance(each, Tensor) and type(each) in (Tensor, nn.Parameter):
            for tensor in (each, each.grad if each.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def status(field: str) -> int:
    """Bytes that the kernel reports for this process."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(field + ":")]
    return 1024 * int(line.split()[1])


def load() -> float | None:
    """Processes that wanted to run, over the last minute."""
    path = Path("/proc/loadavg")
    return float(path.read_text().split()[0]) if path.exists() else None


# --- showing --------------------------------------------------------------------------------------


def ratios(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every ratio with its goal."""
    rows: list[tuple[str, float | None, float]] = []
    if memory := result.get("memory"):
        rows += [
            (
                f"memory: peak from M = 1 to 10 over factors and activations, allocator {how}",
                1.2 if how == "returns memory" else None,
                growth["later_peak"] / (growth["factors"] + KEPT),
            )
            for how, growth in memory["growth"].items()
        ]
        rows += [
            ("memory: held between steps, over M dense", None, memory["held_over_dense"]),
        ]
    if step := result.get("step"):
        rows.append(("step, batch 16, over M dense", 0.5, step["ratios"]["bella over dense"]))
        own = step["ratios"]["bella, own batches over dense"]
        rows.append(("step, own batches, batch 16, over M dense", 0.5, own))
        if "bella over lora" in step["ratios"]:
            rows.append(("step, batch 16, over M LoRA", 0.8, step["ratios"]["bella over lora"]))
        share = step["trainable_per_member"] / step["dense_member"]
        rows.append(("trainable share of a member, transformer", 0.005, share))
    for each in result.get("predict", []):
        goal = 0.5 if each["batch"] == 1 else None
        name = f"predict, batch {each['batch']}, over M dense"
        rows.append((name, goal, each["ratios"]["bella over dense"]))
    for each in result.get("trunk", []):
        batch, step, predict = each["batch"], each["step"]["ratios"], each["predict"]["ratios"]
        rows += [
            (f"last quarter: {what}, batch {batch}, over M {other}", goal, found[key])
            for what, other, goal, found, key in (
                ("step", "dense", TRUNK_GOAL, step, "bella over dense"),
                ("step, own batches", "dense", None, step, "bella, own batches over dense"),
                ("step, kept features", "dense", TRUNK_GOAL, step, "bella cached over dense"),
                ("step", "LoRA", None, step, "bella over lora"),
                ("predict", "dense", TRUNK_GOAL, predict, "bella over dense"),
            )
            if key in found
        ]
    if resnet := result.get("resnet"):
        share = resnet["trainable_per_member"] / resnet["dense_member"]
        formed = resnet["formed_over_factors"]
        rows += [
            ("step, ResNet-20, batch 64, over dense", None, resnet["bella_over_dense"]),
            ("step, ResNet-20, formed over by factors", None, formed),
            ("trainable share of a member, ResNet-20", 0.03, share),
        ]
    return [{"what": what, "goal": goal, "measured": found} for what, goal, found in rows]


def show(result: dict[str, Any]) -> None:
    """Tables for a person."""
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    table = Table("ratio", "goal", "measured")
    for row in result["ratios"]:
        goal = "" if row["goal"] is None else f"<= {row['goal']:g}"
        table.add_row(row["what"], goal, f"{row['measured']:.3g}")
    console.print(table)
    table = Table(f"M = {MEMBERS}", "who", "ms", "GFLOP", "over dense", "over LoRA")
    for title, found in timings(result):
        for name, value in found["milliseconds"].items():
            table.add_row(
                title,
                name,
                f"{value:.1f}",
                f"{found['gigaflops'][name]:.1f}",
                *(
                    f"{found['ratios'].get(f'{name} over {loop}', float('nan')):.2f}"
                    for loop in ("dense", "lora")
                ),
            )
        table.add_section()
    console.print(table)
    if resnet := result.get("resnet"):
        table = Table("ResNet-20, batch 64, M = 1", "ms", "GFLOP", "ms of the arithmetic alone")
        for name, value in resnet["milliseconds"].items():
            flops, floor = resnet["gigaflops"][name], resnet["floor_milliseconds"][name]
            table.add_row(name, f"{value:.1f}", f"{flops:.1f}", f"{floor:.1f}")
        console.print(table)
    if memory := result.get("memory"):
        table = Table("memory", "MB")
        for how, growth in memory["growth"].items():
            for name, value in growth.items():
                table.add_row(f"M = 1 to 10, allocator {how}: {name}", f"{value / 1e6:.1f}")
        for name, value in memory["held"].items():
            table.add_row(f"held: {name}", f"{value / 1e6:.1f}")
        console.print(table)


def timings(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every comparison of times with its title."""
    found = [("step, batch 16", result["step"])] if "step" in result else []
    found += [(f"predict, batch {each['batch']}", each) for each in result.get("predict", [])]
    for each in result.get("trunk", []):
        found += [
            (f"last quarter: {what}, batch {each['batch']}", each[what])
            for what in ("step", "predict")
        ]
    return found


if __name__ == "__main__":
    main()
