"""How much code does one training step enter? Files and functions of bayesify, by a profiler.

    python -m benchmarks.steps.run [--list]

A network of two linear layers, 64 examples of 3 classes, batches of 32; one step of a fresh run
is watched after `fit` has gone through once. Lambdas and comprehensions do not count.
"""

import argparse
import sys
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import nn

import bayesify
from bayesify.training.loop import GradientRun

METHODS = {
    "MAP": bayesify.MAP(epochs=2),
    "STF": bayesify.STF(pretrain=None, epochs=2),
    "Bella": bayesify.Bella(pretrain=None, epochs=2, members=3, rank=1),
}


def main() -> None:
    """Print a line for each method; with --list all that was entered, in order."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    for name, method in METHODS.items():
        entered = watched(method)
        print(f"{name}: {len({file for file, _ in entered})} files, {len(entered)} functions")
        if options.list:
            print(*(f"    {file} {function}" for file, function in entered), sep="\n")


def watched(method: bayesify.Method) -> list[tuple[str, str]]:
    """File and name of each function of bayesify that one step enters, in order."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    runs: list[GradientRun] = []
    begin = GradientRun.__init__

    def noted(self: GradientRun, *args: Any, **how: Any) -> None:
        begin(self, *args, **how)
        runs.append(self)

    with mock.patch.object(GradientRun, "__init__", noted):
        bayesify.fit(net, (x, y), method, batch_size=32)
    entered: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        place, name = frame.f_code.co_filename, frame.f_code.co_qualname
        ours = "/bayesify/" in place and "site-packages" not in place
        if event == "call" and ours and not name.endswith(">"):
            entered[place.rpartition("/bayesify/")[2], name] = None

    sys.setprofile(note)
    try:
        runs[-1].step(x[:32], y[:32])
    finally:
        sys.setprofile(None)
    return list(entered)


if __name__ == "__main__":
    main()
