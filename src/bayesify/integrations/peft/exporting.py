"""Low-rank members to files that peft reads, one adapter for each member.

Matrices are in `layers.py`. Whatever else members have of their own (norms, a head, batch
norm's statistics) is stored with the whole module, under peft's `modules_to_save`; but for the
biases of layers with a low-rank difference, of which peft knows two kinds:

    lora_bias           a bias of the adapter, added to that of the network: the better one, but
                        not to be had when an embedding or a layer without bias is adapted too
    bias="lora_only"    the network's own bias is replaced; peft then takes one member at a time

peft looks for modules by the ends of their names, so what it would find is checked before.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.files import appearing, check_free
from bayesify.core.types import Named
from bayesify.distributions import LowRankParticles
from bayesify.integrations.peft.layers import (
    CONFIG,
    PREFIX,
    TENSORS,
    aliases,
    is_transposed,
    keys_of,
    misfit,
    owner_of,
    to_peft,
)
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.weights.named import weights_of

INSIDE = ("base_layer", "lora_A", "lora_B", "lora_A.default", "lora_B.default")
"""Modules that peft makes in one that is adapted, and that its search finds too."""


def export_adapters(
    posterior: Posterior, path: str | Path, *, overwrite: bool = False
) -> list[Path]:
    """Write each low-rank member to a folder of its own, as a LoRA adapter of peft.

    `peft.PeftModel.from_pretrained(network, folder)` is then that member, where `network` is
    `posterior.model`. Its own weights are not written: keep them by their own means.

    Args:
        posterior: Low-rank members (`Bella`) around a network.
        path: The folder of folders; it must not exist unless `overwrite`. It appears complete.
        overwrite: Replace adapters in a folder of that name. Nothing else is replaced.

    Returns:
        The folders `path/member_0`, ...

    Raises:
        OptionError: the folder exists, or cannot be written.
        UnsupportedModelError: other members than low-rank ones, or peft has no place for a weight:
            of another kind of layer, tied, in groups, or alone in a module that holds others.

    Example:
        >>> import tempfile, torch
        >>> from bayesify.integrations.peft import import_adapters
        >>> from bayesify.likelihoods import Categorical
        >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
        >>> q = LowRankParticles.around(net, members=2, rank=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     adapters = export_adapters(WeightPosterior(net, q, Categorical()), folder + "/new")
        ...     again = import_adapters(net, adapters)
        >>> [each.name for each in adapters], again.predict(torch.zeros(3, 20)).logits.shape
        (['member_0', 'member_1'], torch.Size([2, 3, 4]))
    """
    q = posterior.q if isinstance(posterior, WeightPosterior) else None
    if not isinstance(posterior, WeightPosterior) or not isinstance(q, LowRankParticles):
        raise UnsupportedModelError(
            f"expected low-rank members around a network, got {type(q or posterior).__name__}; fit "
            f"`Bella`, or keep this posterior with `bayesify.save`."
        )
    path = Path(path)
    check_free(path, overwrite, "adapters", _is_adapters)
    parts = _Parts.of(posterior.model, q)
    names = [f"member_{m}" for m in range(q.size(1))]
    with appearing(path, _own_files) as folder:
        for m, name in enumerate(names):
            (folder / name).mkdir()
            tensors = {
                PREFIX + key: each.detach().cpu().contiguous().clone()
                for key, each in parts.tensors(m).items()
            }
            save_file(tensors, folder / name / TENSORS, metadata={"format": "pt"})
            (folder / name / CONFIG).write_text(json.dumps(parts.config(), indent=1) + "\n")
    return [path / name for name in names]


@dataclass
class _Parts:
    """Where in the format the parts of some members go.

    Args:
        model: The network.
        q: The members.
        targets: Modules whose weight has a low-rank difference, by name.
        saved: Modules that are stored whole, by name.
        biases: What becomes of the targets' biases: "none" is learnt, "added", "replaced".
    """

    model: nn.Module
    q: LowRankParticles
    targets: dict[str, nn.Module]
    saved: dict[str, nn.Module]
    biases: str

    @classmethod
    def of(cls, model: nn.Module, q: LowRankParticles) -> "_Parts":
        low_rank, own = list(q.down.named()), [*q.offsets.named(), *q.statistics.named()]
        if not low_rank:
            raise UnsupportedModelError(
                "these members differ in no matrix by a low-rank difference, and a LoRA adapter "
                "needs one; keep this posterior with `bayesify.save`."
            )
        targets = {owner_of(name): model.get_submodule(owner_of(name)) for name in low_rank}
        saved = {
            owner_of(name): model.get_submodule(owner_of(name))
            for name in own
            if owner_of(name) not in targets
        }
        reasons = {name: misfit(model, name) for name in low_rank}
        reasons |= {name: _homeless(model, name, targets) for name in own}
        for name, reason in reasons.items():
            if reason:
                raise UnsupportedModelError(
                    f"peft cannot hold what the members learnt of `{name}`: {reason}. Leave it out "
                    f"(`where=` of Bella; vectors=False leaves out biases and gains)."
                )
        _check_found(model, list(saved), list(targets))
        biases = "none"
        if any(f"{owner}.bias" in own for owner in targets):
            biased = all(getattr(each, "bias", None) is not None for each in targets.values())
            biases = "added" if biased and q.scale.item() else "replaced"
        return cls(model, q, targets, saved, biases)

    def config(self) -> dict[str, Any]:
        """What goes into adapter_config.json; peft has defaults for the rest."""
        ranks = {owner_of(name): each.shape[1] for name, each in self.q.down.named().items()}
        usual = Counter(ranks.values()).most_common(1)[0][0]
        others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != usual}
        return {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,  # the network may have been trained since
            "inference_mode": True,
            "r": usual,
            "lora_alpha": self._alpha(usual),
            "rank_pattern": others,
            "alpha_pattern": {name: self._alpha(rank) for name, rank in others.items()},
            "target_modules": _matching_exactly(self.model, list(ranks)),
            "modules_to_save": list(self.saved) or None,
            "fan_in_fan_out": any(map(is_transposed, self.targets.values())),
            "bias": "lora_only" if self.biases == "replaced" else "none",
            "lora_bias": self.biases == "added",
        }

    def tensors(self, m: int) -> Named:
        """Those of member `m`, by their keys without the prefix."""
        q, base = self.q, weights_of(self.model)
        up, offsets, statistics = q.up.named(), q.offsets.named(), q.statistics.named()
        found: Named = {}
        for name, down in q.down.named().items():
            owner = owner_of(name)
            bias, module = f"{owner}.bias", self.targets[owner]
            a, b = to_peft(module, down[m], up[name][m])
            found |= {f"{owner}.{key}": e for key, e in zip(keys_of(module), (a, b), strict=True)}
            if self.biases == "added":
                added = offsets[bias][m] / q.scale if bias in offsets else b.new_zeros(len(b))
                found[f"{owner}.lora_B.bias"] = added
            elif bias in offsets:
                found[f"{owner}.base_layer.bias"] = base[bias] + offsets[bias][m].to(base[bias])
        for owner, module in self.saved.items():
            for attribute, value in module.state_dict().items():
                name = f"{owner}.{attribute}"
                if name in offsets:
                    value = value + offsets[name][m].to(value)
                found[name] = statistics[name][m] if name in statistics else value
        return found

    def _alpha(self, rank: int) -> float:
        alpha = float(self.q.scale) * rank
        return int(alpha) if alpha.is_integer() else alpha


def _homeless(model: nn.Module, name: str, targets: dict[str, nn.Module]) -> str | None:
    """Why peft has no place for a weight that is learnt in full, or a buffer; None if it has."""
    owner, _, attribute = name.rpartition(".")
    module, names = model.get_submodule(owner), aliases(model).get(name, [name])
    if len(names) > 1:
        return f"it is tied ({', '.join(names)}), which peft would part"
    if owner in targets:
        return None if attribute == "bias" else "beside a low-rank difference only a bias can be"
    if not owner or any(module.children()):
        return "peft stores whole modules, and the one that it belongs to holds others"
    return None if attribute in module.state_dict() else "it is no part of the `state_dict`"


def _matching_exactly(model: nn.Module, targets: list[str]) -> list[str] | str:
    """What makes peft adapt these modules alone: their names, or a pattern if others end so."""
    ends = tuple(f".{name}" for name in targets)
    if any(name not in targets and name.endswith(ends) for name, _ in model.named_modules()):
        return "|".join(re.escape(name) for name in targets)
    return targets


def _check_found(model: nn.Module, saved: list[str], targets: list[str]) -> None:
    """That the names of the modules to save mean these modules, as peft looks for them."""
    inside = [f"{name}.{each}" for name in targets for each in INSIDE]
    state = [name for name, module in model.named_modules() if name and module.state_dict()]
    for name in saved:
        others = [each for each in [*state, *inside] if each not in saved and each.endswith(name)]
        others += [each for each in targets if re.match(rf"(^|.*\.){name}($|\..*)", each)]
        if others:
            raise UnsupportedModelError(
                f"peft looks for modules that are stored whole by the ends of their names, and by "
                f"`{name}` it would find `{others[0]}` too; rename the module, or leave it out "
                f"(`where=` of Bella; vectors=False leaves out biases and gains)."
            )


def _is_adapters(path: Path) -> bool:
    entries = list(path.iterdir()) if path.is_dir() else [path]
    return all(each.name.startswith("member_") and (each / CONFIG).is_file() for each in entries)


def _own_files(path: Path) -> list[Path]:
    """What `export_adapters` writes, relative to `path`."""
    members = [Path(each.name) for each in path.iterdir()]
    return [member / name for member in members for name in (CONFIG, TENSORS)]
