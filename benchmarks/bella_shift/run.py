"""ResNet-20 adapted to the JPEG images of CIFAR-10: Bella beside fine-tuned dense ensembles.

    python -m benchmarks.bella_shift.run --images DIR --weights FILE --lossless FILE \
        --out runs/shift
    python -m benchmarks.bella_shift.run ... --report            # the tables, from what is there
    python -m benchmarks.bella_shift.run ... --tune              # on 2,000 of the test images

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg; FILE the weights of a ResNet-20 trained on the
lossless CIFAR-10 (safetensors), and `x_test, y_test` of lossless images (npz). 10,000 training
images, drawn once, are learnt from. The network has seen the lossless versions of them all, and of
those held out, in its own training, and is far surer of them than of the test images. So options
are chosen on 2,000 test images, and what is said of all 10,000 is said of the 8,000 others too; and
temperatures are fitted on one half of the test images and judged on the other, both ways. Images
are cropped and flipped as in the network's own training: black padding, before the normalisation.
Members are cut from one cell: the first three of ten are an ensemble of three.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import adapted
from PIL import Image

import bayesify
from bayesify import models
from bayesify.data.augment import CropAndFlip
from bayesify.data.examples import Examples
from bayesify.data.readers.cifar import NORMALISE

TRAIN, HELD_OUT, BATCH, EPOCHS = 10_000, 2_000, 64, 2
TEN, THREE, CHOSEN_ON = 10, 3, 2_000

RATES = (1.0, 2.0, 0.5)
"""Of the members in turn, in units of lr: members that learn at rates of their own differ more."""

LOW_RANK = {"pretrain": None, "batch_norm": "frozen", "rank": 1, "lr": 5e-3, "noise": 0.2}


def bella(members: int = THREE, epochs: int = EPOCHS, **changes: Any) -> bayesify.Bella:
    """Members around the network."""
    return bayesify.Bella(**LOW_RANK | {"members": members, "epochs": epochs} | changes)


def dense(epochs: int = EPOCHS) -> bayesify.FineTunedEnsemble:
    """Three fine-tuned copies."""
    return bayesify.FineTunedEnsemble(pretrain=None, members=THREE, epochs=epochs, lr=1e-3)


ARMS: dict[str, Any] = {
    "dense": lambda _: dense(),
    "bella": lambda members: bella(
        members, rates=tuple(RATES[i % len(RATES)] for i in range(members))
    ),
    "bella-2": lambda _: bella(rank=2),
    "bella-4": lambda _: bella(rank=4),
    "bella-svgd": lambda _: bella(interaction="svgd", noise=None),
}


def main() -> None:
    """Fit what is missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--lossless", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--members", type=int, default=TEN, help="of Bella (default 10)")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    seeds = [int(each) for each in options.seeds.split(",")]
    if options.tune:
        tune(options)
        return
    sets = read_sets(options)
    if not options.report:
        arms = {arm: ARMS[arm](options.members) for arm in options.arms.split(",")}
        adapted.fill(options.out, arms, seeds, lambda: pretrained(options.weights), sets, BATCH)
    judged = {
        "jpeg": ("jpeg", slice(None)),
        "jpeg, not chosen on": ("jpeg", choosing(len(sets["jpeg"]))[1]),
        "lossless": ("lossless", slice(None)),
    }
    found = adapted.report(options.out, seeds, sets, judged, by_halves=True)
    print(json.dumps(found, indent=1))


def tune(options: argparse.Namespace) -> None:
    """Three members on the test images that options are chosen on."""
    sets = read_sets(options)
    chosen, _ = choosing(len(sets["jpeg"]))
    sets["chosen on"] = Examples(sets["jpeg"].x[chosen], sets["jpeg"].y[chosen], NORMALISE)
    settings = {f"dense, {passes} passes": dense(passes) for passes in (2, 4)}
    for noise in (0.05, 0.2):
        settings[f"bella, 2 passes, noise {noise}"] = bella(noise=noise)
    for change in ({"noise": 0.1}, {}, {"noise": 0.3}, {"lr": 3e-3}, {"lr": 1e-2}):
        settings[f"bella, 4 passes {change or ''}"] = bella(epochs=4, **change)
    for label, method in settings.items():
        found = adapted.on(
            "chosen on", method, pretrained(options.weights), sets, BATCH, members=THREE
        )
        print(label, {n: round(v, 4) for n, v in found.items()}, flush=True)


def choosing(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which test images options are chosen on, and the others."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(1))
    return order[:CHOSEN_ON], order[CHOSEN_ON:]


def pretrained(weights: Path) -> torch.nn.Module:
    """The published ResNet-20."""
    net = models.build("resnet20", (3, 32, 32), 10)
    models.load_weights(net, weights)
    return net


def read_sets(options: argparse.Namespace) -> dict[str, Examples]:
    """Training, held-out and test images."""
    x, y = decoded(options.images, "train")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    learnt, held = order[:TRAIN], order[TRAIN : TRAIN + HELD_OUT]
    x_test, y_test = decoded(options.images, "test")
    lossless = np.load(options.lossless)
    return {
        "train": Examples(x[learnt], y[learnt], NORMALISE, CropAndFlip()),
        "held out": Examples(x[held], y[held], NORMALISE),
        "jpeg": Examples(x_test, y_test, NORMALISE),
        "lossless": Examples(
            torch.from_numpy(lossless["x_test"]),
            torch.from_numpy(lossless["y_test"]).long(),
            NORMALISE,
        ),
    }


def decoded(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a part as bytes (N, 3, 32, 32); decoded once, kept beside the folder."""
    cache = folder / f"{part}.npz"
    if not cache.exists():
        classes = sorted(each.name for each in (folder / part).iterdir() if each.is_dir())
        images, labels = [], []
        for number, name in enumerate(classes):
            for file in sorted((folder / part / name).glob("*.jpg")):
                images.append(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
                labels.append(number)
        np.savez(cache, x=np.stack(images), y=np.asarray(labels))
    stored = np.load(cache)
    return torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"]).long()


if __name__ == "__main__":
    main()
