"""One job for every library: the same arrays, the same network, the same budget.

A row of the table is a function `fit(job) -> predict`, and `predict(x)` takes inputs (B, D) and
returns class probabilities (B, C), averaged over `job.num_samples` weight samples where there are
any. What a user of a library writes himself, a training loop above all, is here: batches are taken
by one index, and the rate of Adam falls along a cosine, as in bayesify, so that the rows differ by
their method and by what their library costs, not by our loop.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

Predict = Callable[[Tensor], Tensor]
"""Inputs (B, D) -> probabilities (B, C)."""


@dataclass(frozen=True)
class Job:
    """What is to be learnt, and with how much.

    Attributes:
        x: Training inputs, float32 (N, D).
        y: Training classes, int64 (N,).
        held_out_x: Validation inputs, for what needs a loader of its own or chooses a number.
        held_out_y: Validation classes.
        hidden: Widths of the hidden layers.
        num_classes: C.
        epochs: Passes over the data in all, of each network.
        batch_size: Examples a batch.
        lr: Learning rate, from the row's grid.
        seed: Of everything.
        num_samples: S, weight samples a prediction.
    """

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor
    hidden: tuple[int, ...]
    num_classes: int
    epochs: int
    batch_size: int
    lr: float
    seed: int
    num_samples: int = 32

    @property
    def num_data(self) -> int:
        """Training examples N."""
        return len(self.y)

    @property
    def decay(self) -> float:
        """The gradient's share of a prior N(0, 1) on every weight, for losses per example."""
        return 1 / self.num_data

    def net(self, *, dropout: float = 0.0, outputs: bool = True) -> nn.Sequential:
        """A fresh multi-layer perceptron with ReLU; without `outputs` it ends in its features."""
        widths, layers = (self.x.shape[1], *self.hidden), []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(*layers, *[nn.Linear(widths[-1], self.num_classes)] * outputs)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The training examples in a new order, cut into batches."""
        for index in torch.randperm(self.num_data).split(self.batch_size):
            yield self.x[index], self.y[index]

    def loader(self, *, held_out: bool = False) -> "DataLoader[tuple[Tensor, ...]]":
        """For libraries that take a loader."""
        parts = (self.held_out_x, self.held_out_y) if held_out else (self.x, self.y)
        return DataLoader(TensorDataset(*parts), batch_size=self.batch_size, shuffle=not held_out)


def descend(
    job: Job,
    loss: Callable[[Tensor, Tensor], Tensor],
    parameters: Iterable[Tensor] | Iterable[dict[str, object]],
    *,
    epochs: int | None = None,
    decay: float = 0.0,
) -> None:
    """Adam on a loss of a batch, nats per example; the rate falls to zero along a cosine."""
    epochs = epochs or job.epochs
    optimiser = torch.optim.Adam(parameters, lr=job.lr, weight_decay=decay, fused=True)  # type: ignore[arg-type]
    steps = epochs * -(-job.num_data // job.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for x, y in job.batches():
            optimiser.zero_grad()
            loss(x, y).backward()
            optimiser.step()
            schedule.step()


def trained(job: Job, *, epochs: int | None = None, dropout: float = 0.0) -> nn.Sequential:
    """A network trained to the maximum a posteriori in plain torch, in eval mode."""
    net = job.net(dropout=dropout).train()
    loss = lambda x, y: F.cross_entropy(net(x), y)  # noqa: E731
    descend(job, loss, net.parameters(), epochs=epochs, decay=job.decay)
    return net.eval()


def averaged(one: Callable[[Tensor], Tensor], num_samples: int) -> Predict:
    """Probabilities averaged over `num_samples` calls of a random function that gives logits."""

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        return torch.stack([one(x).softmax(1) for _ in range(num_samples)]).mean(0)

    return predict
