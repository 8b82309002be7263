"""Small networks of the kinds the library promises to run, each with a batch and data to fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesify.core.batches import split_batch
from bayesify.core.types import Inputs
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import Categorical
from bayesify.training.data import TrainingData
from bayesify.training.problem import Problem

CLASSES = 3
SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Real data and weights, where they are at hand."""


class TransformerNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class LSTMNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class TiedNet(nn.Module):
    """Scores every token of a vocabulary of CLASSES by the table that embeds it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 5)
        self.mix = nn.Linear(5, 5)
        self.score = nn.Linear(5, CLASSES, bias=False)
        self.score.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.score(torch.tanh(self.mix(self.embed(ids).mean(1))))


@dataclass
class ModelOutput:
    """Like the output objects of Hugging Face transformers, and no tensor."""

    logits: Tensor
    hidden: Tensor


class MappingNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
        hidden = (self.embed(input_ids) * attention_mask.unsqueeze(-1)).sum(1)
        return ModelOutput(self.head(hidden.tanh()), hidden)


class TupleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(left) + self.right(right)))


class BranchingNet(nn.Module):
    """Asks for the value of an activation, which `torch.vmap` cannot answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.head(hidden if hidden.sum() > 0 else -hidden)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def _floats(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda size, generator: torch.randn(size, *shape, generator=generator)


def _ids(vocabulary: int, length: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda size, generator: torch.randint(vocabulary, (size, length), generator=generator)


def _mapping(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(7, (size, 5), generator=generator),
        "attention_mask": torch.ones(size, 5),
    }


def _pair(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 4, generator=generator), torch.randn(size, 3, generator=generator)


def _signal(inputs: Inputs) -> Tensor:
    """A label that a network can learn from the inputs."""
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    first = first[0] if isinstance(first, tuple) else first
    if not first.is_floating_point():
        return first[:, 0] % CLASSES
    score = first.flatten(1)[:, :2]
    return (score[:, 0] > 0).long() + ((score[:, 0] > 0) & (score[:, 1] > 0)).long()


@dataclass(frozen=True)
class Net:
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Any]
    vectorizes: bool = True

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def inputs(self, size: int, seed: int = 0) -> Inputs:
        return self.draw(size, torch.Generator().manual_seed(seed))

    def problem(self, *, vectorize: bool = True) -> Problem:
        return Problem(
            model=self.model(),
            likelihood=Categorical(),
            data=TrainingData.of(
                lambda: map(split_batch, DataLoader(self.data(), batch_size=16, shuffle=True)),
                example=self.inputs(16),
            ),
            readout=read_tensor,
            vectorize=vectorize and self.vectorizes,
            generator=torch.Generator().manual_seed(0),
        )

    def data(self, size: int = 48, seed: int = 1) -> torch.utils.data.Dataset:
        return Pairs(self.inputs(size, seed), _signal(self.inputs(size, seed)))


class Pairs(torch.utils.data.Dataset):
    """Examples `(inputs, target)` where inputs are a tensor, a tuple or a mapping of tensors."""

    def __init__(self, inputs: Inputs, target: Tensor) -> None:
        self.inputs, self.target = inputs, target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return row(self.inputs, index), self.target[index]


class DroppingLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(x))


class DroppingConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(x))


def with_dropout(model: nn.Module) -> nn.Module:
    """The same model, now with dropout in front of its last layer; names stay as they are."""
    kinds = {nn.Linear: DroppingLinear, nn.Conv2d: DroppingConv2d}
    last = [each for each in model.modules() if type(each) in kinds][-1]
    last.__class__ = kinds[type(last)]  # type: ignore[assignment]
    last.drop = nn.Dropout(0.2)
    return model


def row(inputs: Inputs, index: int | slice) -> Any:
    if isinstance(inputs, Mapping):
        return {name: each[index] for name, each in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(each[index] for each in inputs)
    return inputs[index]


NETS = {
    "mlp": Net(mlp, _floats(4)),
    "cnn": Net(cnn, _floats(1, 4, 4)),
    "transformer": Net(TransformerNet, _floats(5, 4)),
    "lstm": Net(LSTMNet, _floats(5, 4), vectorizes=False),
    "tied": Net(TiedNet, _ids(CLASSES, 4)),
    "mapping": Net(MappingNet, _mapping),
    "tuple": Net(TupleNet, _pair),
}
