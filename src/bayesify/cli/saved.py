"""What `bayesify fit` notes beside a posterior, so that the other commands can use it alone.

A folder can come from anywhere, so nothing in it is ever run: a model of ours is built again by its
name, and code that builds a model runs only where the user names it in the same call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bayesify import data, models
from bayesify.core.errors import DataError, LoadError, OptionError
from bayesify.data.examples import Examples, Splits
from bayesify.data.new_inputs import Intake
from bayesify.posteriors.dropout import DropoutPosterior
from bayesify.posteriors.persistence import disk_bytes, load, read_manifest
from bayesify.posteriors.weight import WeightPosterior


@dataclass(frozen=True)
class Notes:
    """How a model was built and what its data were.

    Args:
        model: Name of the model.
        num_outputs: Of the model.
        task: "classification", "multilabel" or "regression".
        class_names: Of the classes or labels; () for regression.
        target_loc: Mean of the training targets, None unless regression.
        target_scale: Their standard deviation, None unless regression.
        intake: From raw inputs to what the model sees.
        source: The data, as the user named them.
        data: Options of the data, as `bayesify.data.splits` takes them.
        fitted: What else decided the fit: `batch_size`, `weights` and `augment`.
    """

    model: str
    num_outputs: int
    task: str
    class_names: tuple[str, ...]
    target_loc: list[float] | None
    target_scale: list[float] | None
    intake: Intake
    source: str
    data: dict[str, Any]
    fitted: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: str,
        splits: Splits,
        source: str,
        options: dict[str, Any],
        fitted: dict[str, Any] | None = None,
    ) -> Self:
        """Notes on a model that is fitted to `splits`."""
        loc, scale = splits.target_loc, splits.target_scale
        return cls(
            model=model,
            num_outputs=splits.num_outputs,
            task=splits.task,
            class_names=splits.class_names,
            target_loc=None if loc is None else loc.tolist(),
            target_scale=None if scale is None else scale.tolist(),
            intake=Intake.of(splits),
            source=source,
            data=options,
            fitted=fitted or {},
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **vars(self),
            "class_names": list(self.class_names),
            "intake": self.intake.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        intake = Intake.from_json(value["intake"])
        return cls(**value | {"class_names": tuple(value["class_names"]), "intake": intake})

    def in_target_units(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (N, D) in the units of the targets as they were measured."""
        loc, scale = torch.tensor(self.target_loc), torch.tensor(self.target_scale)
        return mean * scale + loc, deviation * scale

    def splits(self, source: str | None, data_dir: str | None) -> Splits:
        """The data again, or others of the same kind, as the model was trained to see them.

        Args:
            source: None for the data of the fit.
            data_dir: Where to look for them; None for where they were.

        Raises:
            DataError: they are missing, or of another kind than those of the fit.
        """
        options = self.data if data_dir is None else {**self.data, "data_dir": data_dir}
        found = data.splits(source or self.source, **options)
        for what in ("input_shape", "task", "class_names"):
            mine = self.intake.input_shape if what == "input_shape" else getattr(self, what)
            if getattr(found, what) != mine:
                raise DataError(
                    f"{found.name}: expected {what.replace('_', ' ')} {mine}, as in the training "
                    f"data {self.source}, got {getattr(found, what)}."
                )
        if found.encoding != self.intake.encoding:
            raise DataError(
                f"{found.name}: its columns or their texts differ from those of {self.source}, "
                f"which the model was trained on; use `bayesify predict` for single rows."
            )
        return replace(
            found,
            train=self._seen(found.train, found),
            validation=self._seen(found.validation, found),
            test=self._seen(found.test, found),
            normalise=self.intake.normalise,
            target_loc=None if self.target_loc is None else torch.tensor(self.target_loc),
            target_scale=None if self.target_scale is None else torch.tensor(self.target_scale),
        )

    def _seen(self, examples: Examples, found: Splits) -> Examples:
        """The examples as training saw its own: the same statistics for inputs and targets."""
        y = examples.y
        if found.target_loc is not None and found.target_scale is not None:
            raw = y * found.target_scale + found.target_loc
            y = (raw - torch.tensor(self.target_loc)) / torch.tensor(self.target_scale)
        return Examples(examples.x, y, self.intake.normalise)


UNEARNED, PER_BYTE = 2**24, 64
"""How many numbers a model may have whatever its folder weighs, and how many more for each byte
there: codes of shared weights are a few bits, nothing saved is less."""


def open_run(
    path: str | Path, *, device: str | None = None, named: Sequence[str] = ()
) -> tuple[WeightPosterior | DropoutPosterior, Notes]:
    """The posterior in the folder `path`, and the notes beside it.

    Args:
        path: The folder.
        device: Where to compute, None for the CPU.
        named: The models of the user's own, 'module:function', that the user has named for this
            call; no other code is imported or run. Of several, the one that the notes name.

    Raises:
        LoadError: there is none, it is damaged, or `bayesify fit` did not write it.
        OptionError: its model is code which `named` does not name.
    """
    manifest = read_manifest(Path(path))
    try:
        notes = Notes.from_json(manifest["notes"])
        shape = _checked(notes)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LoadError(
            f"{path} does not say how to build its model: expected a folder written by "
            f"`bayesify fit`; read one of bayesify.save with bayesify.load(path, model)."
        ) from error
    if models.is_code(notes.model):
        name = _named(notes.model, named, path)
    else:
        name = notes.model
        _check_size(name, shape, notes.num_outputs, Path(path))
    model = models.build(name, shape, notes.num_outputs, seed=0)
    return load(path, model.to(device or "cpu")), notes


def _checked(notes: Notes) -> tuple[int, ...]:
    """The shape of an input; a ValueError unless it and the outputs are numbers of a model."""
    shape = notes.intake.input_shape
    numbers = (*shape, notes.num_outputs)
    if not isinstance(notes.model, str) or not all(
        type(each) is int and 0 < each < 2**31 for each in numbers
    ):
        raise ValueError("no model's name and numbers")
    return shape


def _named(noted: str, named: Sequence[str], path: str | Path) -> str:
    """The code that the user has named for a model which the notes call `noted`."""
    if noted in named:
        return noted
    if len(named) == 1:
        return named[0]
    raise OptionError(
        f"{path} says that its model is built by code, {noted!r}, and a folder may not choose what "
        f"runs here: if that is a function you know and trust, name it yourself, with --model."
    )


def _check_size(name: str, shape: tuple[int, ...], num_outputs: int, path: Path) -> None:
    """Raise `LoadError` where the files are far too small for the model, before it is made."""
    room = UNEARNED + PER_BYTE * disk_bytes(path)
    inputs = math.prod(shape)
    with torch.device("meta"):
        numbers = sum(
            each.numel() for each in models.build(name, shape, num_outputs, seed=0).parameters()
        )
    if max(numbers, inputs) > room:
        raise LoadError(
            f"{path}: {name!r} for inputs of shape {shape} has {numbers:,} numbers, more than its "
            f"files can hold; the manifest is damaged or changed. Save the posterior again."
        )


def named_models(text: str | None) -> tuple[str, ...]:
    """What --model names for a saved run: code of the user's own, with commas between several.

    Raises:
        OptionError: one of them is no code.
    """
    names = tuple(each.strip() for each in (text or "").split(",") if each.strip())
    for name in names:
        if ":" not in name:
            raise OptionError(
                f"--model {name}: expected module:function, the code that builds the model of the "
                f"saved run; one of ours is built again without --model."
            )
    return names


def own(model: str) -> str:
    """What the command line of a saved run must repeat: nothing for a model of ours."""
    return f" --model {model}" if models.is_code(model) else ""
