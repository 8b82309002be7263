"""Time, arithmetic and memory of pieces of work, as medians over interleaved repetitions."""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BLOCK = 0.5
"""Seconds that one piece of work is repeated for, before the next has its turn."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What may be timed; cpu, with one thread, says more on a machine that others use."""


def machine(threads: int) -> dict[str, Any]:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def timed(
    work: dict[str, Callable[[], Any]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each, in interleaved blocks, after a warm-up.

    A block repeats one piece of work for about `BLOCK` seconds, as a user would: a single call
    among others would mostly measure what those left in the caches and in the allocator.
    """
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
