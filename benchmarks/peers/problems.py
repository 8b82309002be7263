"""The two data sets of the comparison, as flat tensors."""

from dataclasses import dataclass
from functools import cache

import torch
from job import Job
from torch import Tensor

import bayesify
from bayesify.data import Examples

EPOCHS = {"digits": 60, "fashion-mnist": 10}
BATCH = {"digits": 64, "fashion-mnist": 128}
HIDDEN = {"digits": (64, 64, 64), "fashion-mnist": (256, 256)}
FOREIGN = {"digits": "photos", "fashion-mnist": "mnist"}
SEEDS = {"digits": 3, "fashion-mnist": 2}
TRAINING, VALIDATION = 10_000, 2_000  # images of Fashion-MNIST; digits has fewer


@dataclass(frozen=True)
class Judged:
    """What a prediction is judged on.

    Attributes:
        x: Inputs (B, D).
        y: Classes (B,).
        foreign: Inputs of another kind (F, D).
    """

    x: Tensor
    y: Tensor
    foreign: Tensor


@dataclass(frozen=True)
class Parts:
    """A data set, cut by a seed.

    Attributes:
        name: Of the data set.
        seed: Draws the validation part and the training images, and seeds the fit.
        train: Inputs (N, D) and classes (N,).
        held_out: The same of the validation part.
        judged: The test part.
        num_classes: C.
    """

    name: str
    seed: int
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    judged: Judged
    num_classes: int

    def job(self, lr: float) -> Job:
        """What is to be learnt, at a learning rate."""
        return Job(
            *self.train,
            *self.held_out,
            hidden=HIDDEN[self.name],
            num_classes=self.num_classes,
            epochs=EPOCHS[self.name],
            batch_size=BATCH[self.name],
            lr=lr,
            seed=self.seed,
        )


@cache
def parts(name: str, data_dir: str | None, seed: int) -> Parts:
    """The data set; the test and foreign parts are the same for every seed."""
    splits = bayesify.data.splits(name, data_dir=data_dir, seed=seed)
    foreign = bayesify.data.ood(FOREIGN[name], splits, data_dir=data_dir)
    return Parts(
        name,
        seed,
        train=_flat(splits.train, TRAINING, seed),
        held_out=_flat(splits.validation, VALIDATION, seed),
        judged=Judged(*_flat(splits.test, None, seed), _flat(foreign, None, seed)[0]),
        num_classes=splits.num_outputs,
    )


def _flat(examples: Examples, most: int | None, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(examples), generator=generator)[: most or len(examples)]
    x, y = examples.plain().batch(index.sort().values)
    return x.flatten(1).contiguous(), y
