"""Save a posterior to a folder that appears when it is complete, load it back; no pickle.

    manifest.json            format, classes, options, shapes, checksums
    q.safetensors            the weight distribution, as its `stored()` gives it
    base.safetensors         the weights and buffers that it leaves alone (unless base=False)
    likelihood.safetensors   the likelihood's own parameters, if any
    prior.safetensors        the prior's means, where a certificate needs them

A folder appears under its final name only when it is complete; see `replacing`.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bayesify.core.errors import BayesifyError, LoadError, OptionError, UnsupportedModelError
from bayesify.core.files import appearing, check_free, recover
from bayesify.core.types import Named, Readout
from bayesify.core.wrappers import bare_copy
from bayesify.distributions import DISTRIBUTIONS
from bayesify.distributions.priors import NormalPrior
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import LIKELIHOODS
from bayesify.posteriors.base import FitRecord, Posterior
from bayesify.posteriors.dropout import DropoutPosterior
from bayesify.posteriors.weight import AVERAGES, WeightPosterior
from bayesify.weights.held_rows import clear_held_rows_
from bayesify.weights.named import assign_, buffers_of, digest, weights_of

FORMAT = "bayesify posterior"
FORMAT_VERSION = 5
READ = (2, 3, 4, FORMAT_VERSION)
"""Version 2 said `dropout` where 3 names the posterior. The files of 3 are those of 4, but whoever
wrote them predicted with other weight samples, the same for all seeds; q is what it was. Version 5
has `tangent` and `average` where 4 named a class; who reads 4 alone would pass them by."""

MANIFEST = "manifest.json"
PARTS = ("q", "base", "likelihood", "prior")

KINDS: dict[type, tuple[Callable[[Any], WeightPosterior], Callable[[WeightPosterior], Any]]] = {
    WeightPosterior: (lambda each: each, lambda each: each),
    DropoutPosterior: (DropoutPosterior.without_dropout, DropoutPosterior.around),
}
"""What can be saved: how it becomes a plain distribution over weights, and again what it was."""

OLD = {
    "WeightPosterior": ("WeightPosterior", False, "samples"),
    "LinearisedPosterior": ("WeightPosterior", True, "samples"),
    "ProbitPosterior": ("WeightPosterior", False, "probit"),
    "LinearisedProbitPosterior": ("WeightPosterior", True, "probit"),
    "DropoutPosterior": ("DropoutPosterior", False, "samples"),
}
"""Classes of versions 3 and 4, by their class, `tangent` and `average` now."""


def save(
    posterior: Posterior,
    path: str | Path,
    *,
    base: bool = True,
    overwrite: bool = False,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Write `posterior` to the folder `path`, atomically.

    Args:
        posterior: What to save.
        path: The folder; it must not exist unless `overwrite`.
        base: Whether the weights that are not random go along. Without, `load` needs a model
            that has exactly these weights.
        overwrite: Replace the posterior in a folder of that name. Other files there stay.
        notes: JSON values to keep in the manifest, e.g. how to build the model.

    Returns:
        The folder.

    Raises:
        OptionError: the folder exists, or cannot be written, or the notes are no JSON.
        UnsupportedModelError: this kind of posterior has no file format.
    """
    if type(posterior) not in KINDS:
        known = ", ".join(each.__name__ for each in KINDS)
        raise UnsupportedModelError(
            f"{type(posterior).__name__} cannot be saved; expected one of {known}."
        )
    alone = KINDS[type(posterior)][0](posterior)
    path = Path(path)
    check_free(path, overwrite, "a posterior", is_posterior)
    along = alone.base() if base else {}
    description = _manifest(alone, notes or {}, elsewhere=set(along))
    parts = {
        "q": alone.q.stored(),
        "likelihood": alone.likelihood.state_dict(),
        "base": along,
        "prior": prior.loc.named() if (prior := _prior_to_save(alone)) else {},
    }
    with appearing(path, _own_files) as folder:
        files = {}
        for part, tensors in parts.items():
            if tensors:
                file = folder / f"{part}.safetensors"
                plain = {n: each.detach().contiguous().clone() for n, each in tensors.items()}
                save_file(plain, file)
                files[file.name] = {
                    "bytes": file.stat().st_size,
                    "sha256": _file_digest(file),
                    "order": list(tensors) if part == "q" else [],
                }
        description |= {"posterior": type(posterior).__name__, "files": files}
        (folder / MANIFEST).write_text(_lines(description))
    return path


def load(
    path: str | Path, model: nn.Module, *, readout: Readout | None = None
) -> WeightPosterior | DropoutPosterior:
    """The posterior saved in the folder `path`, around a copy of `model`.

    Args:
        path: A folder that `save` wrote.
        model: A network of the same architecture; only its weights of other names matter when
            the posterior was saved with `base=False`. It is not changed.
        readout: As given to `fit`, needed if one was.

    Raises:
        LoadError: no such posterior, a file is damaged or foreign, or the model does not fit.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    try:
        manifest = _of_today(manifest)
        rebuild = {kind.__name__: around for kind, (_, around) in KINDS.items()}
        return rebuild[manifest["posterior"]](_rebuilt(folder, manifest, model, readout))
    except BayesifyError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise LoadError(
            f"{folder / MANIFEST} is damaged or changed ({error!r}); save the posterior again."
        ) from error


def _of_today(manifest: dict[str, Any]) -> dict[str, Any]:
    """With the entries of an older version as they would be written now."""
    if manifest["version"] == FORMAT_VERSION:
        if manifest["average"] not in AVERAGES:
            raise ValueError(manifest["average"])
        return manifest
    default = "DropoutPosterior" if manifest.get("dropout") else "WeightPosterior"
    kind, tangent, average = OLD[manifest.get("posterior", default)]
    return manifest | {"posterior": kind, "tangent": tangent, "average": average}


def _rebuilt(
    folder: Path, manifest: dict[str, Any], model: nn.Module, readout: Readout | None
) -> WeightPosterior:
    parts = {part: _read_part(folder, part, manifest) for part in PARTS}
    model = bare_copy(model, {*manifest["model"]["tensors"], *parts["base"]}).eval()
    _check_model(manifest, parts["base"], model, folder)
    if manifest["custom_readout"] and readout is None:
        raise LoadError(f"{folder} was fitted with a readout of its own; pass the same `readout=`.")
    likelihood = LIKELIHOODS[manifest["likelihood"]["kind"]](**manifest["likelihood"]["options"])
    likelihood.load_state_dict(parts["likelihood"])
    device = next(model.requires_grad_(False).parameters()).device
    posterior = WeightPosterior(
        model,
        DISTRIBUTIONS[manifest["distribution"]].from_stored(parts["q"]).to(device),
        likelihood.to(device),
        readout=readout or read_tensor,
        vectorize=manifest["vectorize"],
        record=FitRecord(**manifest["record"]) if manifest["record"] else None,
        tangent=manifest["tangent"],
        average=manifest["average"],
    )
    if prior := manifest.get("prior"):
        posterior.prior = NormalPrior(prior["scale"], loc=parts["prior"]).to(device)
    clear_held_rows_(model, set(posterior.q.names) - set(posterior.q.perturbed))
    assign_(model, parts["base"])
    if digest(posterior.base()) != manifest["base_sha256"]:
        raise LoadError(
            f"{folder} holds no base weights (saved with base=False), and those of the given "
            f"{type(model).__name__} are not the ones it was fitted around; load these first."
        )
    return posterior


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved posterior.

    Raises:
        LoadError: there is none, or it is damaged or of another format.
    """
    recover(folder)
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise LoadError(
            f"{folder} holds no posterior ({MANIFEST} is missing); expected a folder written by "
            f"bayesify.save or `bayesify fit --out`."
        ) from error
    except (ValueError, OSError) as error:
        raise LoadError(f"{file} is damaged ({error}); save the posterior again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise LoadError(f"{file} is not the manifest of a {FORMAT}.")
    if manifest.get("version") not in READ:
        raise LoadError(
            f"{file} has format version {manifest.get('version')}, this bayesify reads "
            f"{FORMAT_VERSION}; use the bayesify that wrote it ({manifest.get('written_by')})."
        )
    return manifest


def disk_bytes(folder: Path) -> int:
    """Bytes that a saved posterior takes on disk; what else lies in its folder does not count."""
    own = [folder / file for file in files_of(folder)]
    return sum(file.stat().st_size for file in own if file.exists())


def is_posterior(path: Path) -> bool:
    """Whether a posterior that can be read is saved in the folder `path`."""
    try:
        return bool(read_manifest(path))
    except (LoadError, OSError):
        return False


def files_of(folder: Path) -> list[Path]:
    """The files of a saved posterior, relative to its folder: the manifest, and those it lists."""
    listed = read_manifest(folder).get("files")
    names = [f"{part}.safetensors" for part in PARTS]
    held = listed if isinstance(listed, dict) else {}
    return [Path(MANIFEST), *(Path(each) for each in names if each in held)]


def _own_files(folder: Path) -> list[Path]:
    return files_of(folder) if any(folder.iterdir()) else []


def _lines(manifest: dict[str, Any]) -> str:
    """JSON with one line for each entry: to be read by people, and short."""
    parts = [
        f"{json.dumps(n)}: {json.dumps(e, separators=(',', ':'))}" for n, e in manifest.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _manifest(
    posterior: WeightPosterior, notes: dict[str, Any], *, elsewhere: set[str]
) -> dict[str, Any]:
    """What there is to know before any tensor is read, but the layout of those `elsewhere`."""
    names = {kind: name for name, kind in LIKELIHOODS.items()}
    for part, known in ((posterior.q, DISTRIBUTIONS.values()), (posterior.likelihood, names)):
        if type(part) not in known:
            raise UnsupportedModelError(
                f"a posterior with a {type(part).__name__} of your own cannot be saved; known: "
                f"{', '.join(each.__name__ for each in known)}."
            )
    try:
        json.dumps(notes)
    except TypeError as error:
        raise OptionError(f"notes: expected values that JSON knows ({error}).") from error
    record = posterior.record
    tensors = weights_of(posterior.model) | buffers_of(posterior.model)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "written_by": record.versions if record else {},
        "distribution": type(posterior.q).__name__,
        "likelihood": {
            "kind": names[type(posterior.likelihood)],
            "options": posterior.likelihood.options(),
        },
        "vectorize": posterior.vectorize,
        "tangent": posterior.tangent,
        "average": posterior.average,
        "custom_readout": posterior.readout is not read_tensor,
        "model": {
            "class": type(posterior.model).__name__,
            "tensors": _layout({n: e for n, e in tensors.items() if n not in elsewhere}),
        },
        "base_sha256": digest(posterior.base()),
        "record": record.to_json() if record else None,
        "prior": {"scale": prior.scale} if (prior := _prior_to_save(posterior)) else None,
        "notes": notes,
    }


def _prior_to_save(posterior: WeightPosterior) -> NormalPrior | None:
    """The prior, where examples were kept from it and it can be written."""
    certifies = posterior.record is not None and posterior.record.certifying is not None
    return posterior.prior if certifies and isinstance(posterior.prior, NormalPrior) else None


def _layout(tensors: Named) -> dict[str, list[Any]]:
    return {name: [list(each.shape), str(each.dtype)] for name, each in tensors.items()}


def _check_model(manifest: dict[str, Any], base: Named, model: nn.Module, folder: Path) -> None:
    """The manifest describes the tensors that are not in the base file."""
    expected = manifest["model"]["tensors"] | _layout(base)
    got = _layout(weights_of(model) | buffers_of(model))
    for name in expected | got:
        if expected.get(name) != got.get(name):
            raise LoadError(
                f"{folder} was fitted to a {manifest['model']['class']} whose `{name}` is "
                f"{_describe(expected.get(name))}; in the given {type(model).__name__} it is "
                f"{_describe(got.get(name))}. Build the model as it was for the fit."
            )


def _describe(layout: list[Any] | None) -> str:
    return "absent" if layout is None else f"{tuple(layout[0])} {layout[1]}"


def _read_part(folder: Path, part: str, manifest: dict[str, Any]) -> Named:
    file = folder / f"{part}.safetensors"
    if file.name not in manifest["files"]:
        return {}
    if not file.exists():
        raise LoadError(f"{file} is missing; the folder is incomplete. Save the posterior again.")
    if _file_digest(file) != manifest["files"][file.name]["sha256"]:
        raise LoadError(
            f"{file} does not match its checksum: it is truncated ({file.stat().st_size} of "
            f"{manifest['files'][file.name]['bytes']} bytes) or changed. Save the posterior again."
        )
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise LoadError(f"{file} is no safetensors file ({error}).") from error
    # safetensors sorts by name, but random draws go through a distribution in its own order
    order = manifest["files"][file.name]["order"]
    return {name: tensors[name] for name in order or tensors}


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
