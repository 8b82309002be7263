"""Reference nets by name, nets of your own by 'module:function', and weights from disk.

All run under `torch.func.functional_call` and `torch.vmap`, and every module that owns parameters
can draw them anew (`reset_parameters`).
"""

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from bayesify.core.errors import LoadError, OptionError, UnsupportedModelError
from bayesify.core.types import Named
from bayesify.models import cnn, mlp, resnet, vit

__all__ = ["MODELS", "build", "is_code", "load_weights"]

MODELS: Mapping[str, Callable[[Sequence[int], int], nn.Module]] = {
    "mlp": mlp.mlp,
    "mlp-dropout": partial(mlp.mlp, dropout=0.1),
    "cnn": cnn.cnn,
    "resnet20": resnet.resnet20,
    "resnet32": resnet.resnet32,
    "resnet56": resnet.resnet56,
    "vit": vit.vit,
}
"""Each takes the shape of one input and the number of outputs."""

SIZED = "mlp-"
"""Before the widths of the hidden layers: `mlp-64-64` is `mlp`."""

WIDTH = re.compile("0*[1-9][0-9]{0,5}")


def build(
    name: str, input_shape: Sequence[int], num_outputs: int, *, seed: int | None = None
) -> nn.Module:
    """A fresh net for inputs of `input_shape`.

    Args:
        name: A key of `MODELS`; `mlp-` and the widths of the hidden layers, as in `mlp-50` or
            `mlp-400-400`; or 'module:function' of your own, called as
            `function(input_shape, num_outputs)`; modules in the current directory are found too.
        input_shape: Of one example.
        num_outputs: Classes, labels or target dimensions.
        seed: Decides the initial weights and leaves torch's global generator as it was; None draws
            them from that generator.

    Raises:
        OptionError: The model, the module or the function cannot be found or called so.
        UnsupportedModelError: The function returned something else than a module.

    Example:
        >>> build("mlp", (1, 8, 8), 10, seed=0)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> [each.out_features for each in build("mlp-50", (13,), 1) if isinstance(each, nn.Linear)]
        [50, 1]
    """
    builder = _builder(name)
    if seed is None:
        return builder(input_shape, num_outputs)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return builder(input_shape, num_outputs)


def is_code(name: str) -> bool:
    """Whether `build` would import and run code to make the model `name`, not one of ours.

    Whoever reads a name from a file asks this first: a file may name a net, and no code.

    Example:
        >>> is_code("mlp-50"), is_code("my_module:net")
        (False, True)
    """
    return ":" in name and not name.startswith(SIZED)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the tensors of a safetensors file into `model`, which is changed.

    Names must agree exactly; only BatchNorm's count of batches may be absent.

    Args:
        model: Takes the tensors, under the names of its `state_dict`.
        path: The file.

    Raises:
        LoadError: No such file, not safetensors, or names or shapes that do not fit.
    """
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"{path}: expected a safetensors file with the model's weights ({error}); save one "
            "with safetensors.torch.save_file(model.state_dict(), path)."
        ) from error
    if misfits := _misfits(model.state_dict(), given):
        raise LoadError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(misfits)}. Build the model "
            "that the weights were saved from."
        )
    model.load_state_dict(given)


def _misfits(wanted: Named, given: Named) -> list[str]:
    missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    reshaped = [
        f"{name} has shape {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    listed = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return [f"{what}: {', '.join(names)}" for what, names in listed.items() if names]


def _builder(name: str) -> Callable[[Sequence[int], int], nn.Module]:
    if name in MODELS:
        return MODELS[name]
    return _mlp_of(name) if name.startswith(SIZED) else _own(name)


def _mlp_of(name: str) -> Callable[[Sequence[int], int], nn.Module]:
    widths = name.removeprefix(SIZED).split("-")
    if not all(WIDTH.fullmatch(each) for each in widths):
        raise OptionError(
            f"unknown model {name[:80]!r}: expected the widths of the hidden layers, whole numbers "
            f"from 1 to 999999 with - between them, as in {SIZED}50 or {SIZED}400-400."
        )
    return partial(mlp.mlp, hidden=tuple(map(int, widths)))


def _own(name: str) -> Callable[[Sequence[int], int], nn.Module]:
    function = _find(name)

    def builder(input_shape: Sequence[int], num_outputs: int) -> nn.Module:
        try:
            inspect.signature(function).bind(input_shape, num_outputs)
        except TypeError as error:
            raise OptionError(
                f"model {name!r}: expected a function that can be called as "
                f"{name.split(':')[-1]}(input_shape, num_outputs) ({error}); give it these two "
                "arguments."
            ) from error
        with _current_directory_importable():
            model = function(input_shape, num_outputs)
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                f"model {name!r}: expected it to return a torch.nn.Module, got "
                f"{type(model).__name__}; return the module itself."
            )
        return model

    return builder


def _find(name: str) -> Callable[..., object]:
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        near = difflib.get_close_matches(name, MODELS, n=1)
        raise OptionError(
            f"unknown model {name!r}: expected one of {', '.join(MODELS)}, {SIZED}50 and the like, "
            f"or 'module:function' of your own{f'; did you mean {near[0]!r}?' if near else '.'}"
        )
    try:
        with _current_directory_importable():
            module = import_module(module_name)
    except ImportError as error:
        raise OptionError(
            f"model {name!r}: cannot import {module_name!r} ({error}); start in the folder that "
            "holds it, or install it."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise OptionError(
            f"model {name!r}: expected a function {function_name!r} in {module_name}, found "
            f"{'none' if function is None else type(function).__name__}; check its name."
        )
    return function


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
