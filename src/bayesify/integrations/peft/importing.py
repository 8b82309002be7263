"""LoRA adapters of one network, as `export_adapters` or peft itself has written them, to members.

Factors, and biases of adapters, are taken as they are; of whatever else a file holds (modules that
are stored whole, biases of the network) the differences from the network are taken.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bayesify.core.clones import clone
from bayesify.core.errors import LoadError, OptionError, UnsupportedModelError
from bayesify.core.types import Named, Readout
from bayesify.distributions import LowRankParticles
from bayesify.forward.outputs import read_tensor
from bayesify.integrations.peft.layers import (
    CONFIG,
    PREFIX,
    TENSORS,
    aliases,
    from_peft,
    keys_of,
    misfit,
    to_peft,
)
from bayesify.likelihoods import Likelihood, resolve
from bayesify.numerics.noise import single_or_better
from bayesify.posteriors.weight import WeightPosterior
from bayesify.weights.named import buffers_of, stacked, weights_of

OTHER_KINDS = (
    *("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "layer_replication"),
    *("arrow_config", "kasa_config", "monteclora_config", "megatron_config"),
    *("target_parameters", "trainable_token_indices"),
)
"""Options of peft's LoRA under which a layer is not base + scale * up @ down."""

PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the network's own weights alone."""

ALPHA = 8
"""peft's default of `lora_alpha`."""


def import_adapters(
    model: nn.Module,
    paths: Sequence[str | Path],
    *,
    likelihood: str | Likelihood = "categorical",
    readout: Readout = read_tensor,
) -> WeightPosterior:
    """Members from LoRA adapters of one network, as `export_adapters` or peft has written them.

    All must adapt the same modules at the same ranks. Scales that differ go into `up`.

    Args:
        model: The network that they were trained around. It is copied.
        paths: Their folders, one for each member.
        likelihood: What the network's outputs mean.
        readout: As for `fit`.

    Raises:
        LoadError: a folder holds no adapter of this network, or of a kind that is no low-rank
            difference (DoRA, say), or one unlike the others.
        UnsupportedModelError: a layer that is adapted has no low-rank difference here: it is tied,
            in groups, quantised.

    Example:
        >>> import_adapters(nn.Sequential(nn.Linear(20, 4)), ["lora/seed_0", "lora/seed_1"])
        Traceback (most recent call last):
        bayesify.core.errors.LoadError: lora/seed_0 holds no adapter...
    """
    if isinstance(paths, str | Path) or not paths:
        raise OptionError(f"paths={paths!r}: expected a list of folders, one for each member.")
    model = clone(model).eval().requires_grad_(False)
    members = [_Adapter.read(Path(path), model) for path in paths]
    for member in members[1:]:
        member.check_like(members[0])
    scale = next(iter(members[0].scales.values()))
    alike = all(math.isclose(s, scale, rel_tol=1e-6) for e in members for s in e.scales.values())
    statistics = stacked([each.statistics for each in members])
    buffers = buffers_of(model)
    q = LowRankParticles(
        stacked([each.down for each in members]),
        stacked([each.up if alike else each.scaled() for each in members]),
        {n: each for n, each in stacked([each.own for each in members]).items() if each.any()},
        {n: each for n, each in statistics.items() if (each != buffers[n]).any()},
        scale=scale if alike else 1.0,
        base=weights_of(model),
    )
    return WeightPosterior(model, q, resolve(likelihood), readout=readout)


@dataclass
class _Adapter:
    """One adapter as differences from a network; fields as in `LowRankParticles`, without M."""

    folder: Path
    down: Named = field(default_factory=dict)
    up: Named = field(default_factory=dict)
    own: Named = field(default_factory=dict)
    statistics: Named = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, model: nn.Module) -> "_Adapter":
        adapter, config = cls(folder), _read_config(folder)
        layers: dict[str, Named] = {}
        others: Named = {}
        for key, each in _read_tensors(folder, str(next(model.parameters()).device)).items():
            owner, inside, part = key.removeprefix(PREFIX).rpartition(".lora_")
            if inside:
                layers.setdefault(owner, {})[f"lora_{part}"] = each
            else:
                others[part.replace(".base_layer.", ".")] = each
        listed = config.get("target_modules")
        for name in listed if isinstance(listed, list) else ():
            if not any(f".{owner}".endswith(f".{name}") for owner in layers):
                adapter._complain(f"holds no factors of `{name}`, which its {CONFIG} lists")
        if not layers:
            adapter._complain("holds no factors at all")
        for owner, tensors in layers.items():
            adapter._take_factors(model, owner, tensors, config)
        for name, each in others.items():
            adapter._take_value(model, name, each)
        return adapter

    def scaled(self) -> Named:
        """`up` with the scales in it."""
        return {name: self.scales[name] * each for name, each in self.up.items()}

    def check_like(self, other: "_Adapter") -> None:
        for part in ("down", "own", "statistics"):
            mine, theirs = (
                {name: str(tuple(each.shape)) for name, each in getattr(adapter, part).items()}
                for adapter in (self, other)
            )
            for name in mine | theirs:
                one, two = mine.get(name, "absent"), theirs.get(name, "absent")
                if one != two:
                    what = (
                        f"the lora_A of `{name}` (as a matrix)" if part == "down" else f"`{name}`"
                    )
                    raise LoadError(
                        f"{self.folder}: {what} is {one}, in {other.folder} it is {two}; expected "
                        f"adapters of the same modules at the same ranks. Train them alike."
                    )

    def _take_factors(
        self, model: nn.Module, owner: str, tensors: Named, config: dict[str, Any]
    ) -> None:
        name, module = f"{owner}.weight", dict(model.named_modules()).get(owner)
        if module is None:
            self._complain(f"adapts `{owner}`, which the given {type(model).__name__} lacks")
        if reason := misfit(model, name):
            raise UnsupportedModelError(f"{self.folder} adapts `{name}`, but {reason}.")
        keys = keys_of(module)
        for key in keys:
            if key not in tensors:
                self._complain(f"lacks `{PREFIX}{owner}.{key}`")
        for key in tensors:
            if key not in (*keys, "lora_B.bias"):
                self._complain(f"holds `{PREFIX}{owner}.{key}`, which is no part of plain LoRA")
        weight, factors = weights_of(model)[name], [tensors[key] for key in keys]
        rank = max([1, *factors[0].shape[:1]])
        down, up = weight.new_empty(rank, weight[0].numel()), weight.new_empty(len(weight), rank)
        for key, each, fit in zip(keys, factors, to_peft(module, down, up), strict=True):
            self._check_shape(f"{owner}.{key}", each, fit, model)
        self.down[name], self.up[name] = from_peft(module, *factors)
        self.scales[name] = _scale(config, owner, rank)
        if "lora_B.bias" in tensors:
            self._take_bias(model, owner, self.scales[name] * tensors["lora_B.bias"])

    def _take_bias(self, model: nn.Module, owner: str, added: Tensor) -> None:
        name = f"{owner}.bias"
        base = weights_of(model).get(name)
        if base is not None:
            self._check_shape(f"{owner}.lora_B.bias", added, base, model)
            self.own[name] = added.to(single_or_better(base.dtype))
        elif added.any():
            self._complain(f"adds a bias to `{owner}`, which has none in the given network")

    def _take_value(self, model: nn.Module, name: str, value: Tensor) -> None:
        """A weight or buffer of the network in place of that which it has."""
        names, buffers = aliases(model), buffers_of(model)
        if name not in names and name not in buffers:
            self._complain(f"holds `{PREFIX}{name}`, which {type(model).__name__} has not")
        name = names.get(name, [name])[0]
        base = (weights_of(model) | buffers)[name]
        self._check_shape(name, value, base, model)
        if name in buffers:
            self.statistics[name] = value.to(base.dtype)
        elif name not in self.down and len(names[name]) == 1:
            dtype = single_or_better(base.dtype)
            self.own[name] = value.to(dtype) - base.to(dtype) + self.own.get(name, 0)
        elif not value.equal(base):
            tied = f"is tied ({', '.join(names[name])})" if name not in self.down else "is adapted"
            self._complain(f"replaces `{name}`, which {tied}, by other values than the network's")

    def _check_shape(self, key: str, got: Tensor, fit: Tensor, model: nn.Module) -> None:
        if got.shape != fit.shape:
            self._complain(
                f"holds `{PREFIX}{key}` of shape {tuple(got.shape)}; the given "
                f"{type(model).__name__} needs {tuple(fit.shape)}"
            )

    def _complain(self, what: str) -> NoReturn:
        raise LoadError(
            f"{self.folder} {what}. Expected a whole LoRA adapter of the given network; build the "
            f"network as it was for the adapter, or save the adapter again."
        )


def _scale(config: dict[str, Any], owner: str, rank: int) -> float:
    alpha = config.get("lora_alpha", ALPHA)
    for pattern, each in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", owner):  # as peft does; the first one counts
            alpha = each
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError as error:
        raise LoadError(
            f"{folder} holds no adapter ({CONFIG} is missing); expected a folder written by "
            f"bayesify.export_adapters or peft's save_pretrained."
        ) from error
    except (ValueError, OSError) as error:
        raise LoadError(
            f"{folder / CONFIG} is damaged ({error}); save the adapter again."
        ) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise LoadError(f"{folder / CONFIG} has peft_type {kind!r}; expected 'LORA', the only one.")
    for option in OTHER_KINDS:
        if config.get(option):
            raise LoadError(
                f"{folder / CONFIG} has {option}={config[option]!r}, which is no low-rank "
                f"difference base + scale * up @ down; expected plain LoRA (or rsLoRA)."
            )
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise LoadError(
            f"{folder / CONFIG} has init_lora_weights={start!r}, which changes the network's own "
            f"weights; convert it with peft (path_initial_model_for_weight_conversion)."
        )
    return config


def _read_tensors(folder: Path, device: str) -> Named:
    file = folder / TENSORS
    if not file.exists():
        raise LoadError(
            f"{file} is missing; expected one beside {CONFIG}. Save the adapter again, by peft "
            f"with safe_serialization=True."
        )
    try:
        tensors = load_file(file, device=device)
    except SafetensorError as error:
        raise LoadError(
            f"{file} is no safetensors file ({error}); save the adapter again."
        ) from error
    for key in tensors:
        if not key.startswith(PREFIX):
            raise LoadError(
                f"{file} holds `{key}`; expected keys that begin with `{PREFIX}`. Save the adapter "
                f"by peft's save_pretrained."
            )
    return tensors
