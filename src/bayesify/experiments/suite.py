"""What to compare: data x folds x models x methods x seeds, from flags or from a TOML file.

data = ["digits"]
models = ["mlp"]
seeds = [0, 1, 2]

[[method]]
name = "map+ts"                 # any method, with temperature scaling after the fit

[[method]]
name = "stf"
label = "stf, long"             # optional; what tables call it
temperature = [0.1, 1.0]        # a list is a grid: every combination is compared
"pretrain.epochs" = 20          # an option of the method inside
where = "*.mlp.*"
likelihood.scale = 0.5          # an option of the likelihood that belongs to the data's task

`[[literature]]` tables hold published numbers: see `literature.py`. `evaluate = ["attacks"]` asks
for more to be measured, with options in a table `[attacks]`: see `aspects.py`.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bayesify.core.errors import DataError, OptionError
from bayesify.core.fields import fields_of, near
from bayesify.core.options import check_options, option
from bayesify.data import check_validation_share
from bayesify.data.examples import VALIDATION_SHARE
from bayesify.experiments.aspects import ASPECTS, Aspects
from bayesify.experiments.choices import combinations, flat, grid
from bayesify.experiments.literature import Literature, read_literature
from bayesify.methods import METHODS
from bayesify.methods.members.map import MAP
from bayesify.models import is_code
from bayesify.training.method import Method

SCALED = "+ts"
"""Suffix of a method's name: temperature scaling on the validation part, after the fit."""

DEFAULT_METHODS = ("map", "map" + SCALED, "ensemble", "stf")
SPLITS = ("test", "validation")

NOISE = "likelihood."
"""Before the options of a row that are its likelihood's."""


@dataclass(frozen=True)
class Entry:
    """A row of the table to be.

    Args:
        label: What tables call it.
        method: The method with its options.
        scaled: Whether its temperature is scaled on the validation part.
        likelihood: Options of the likelihood; what it takes depends on the task.
        if_possible: Whether it is left out, rather than fails, where the method cannot treat the
            model.
    """

    label: str
    method: Method
    scaled: bool = False
    likelihood: Mapping[str, Any] = field(default_factory=dict)
    if_possible: bool = False


@dataclass(frozen=True)
class Suite:
    """A comparison. Its options are keys of a suite file, and flags."""

    data: tuple[str, ...] = option(("digits",), help="sources, as `bayesify.data.splits` takes")
    models: tuple[str, ...] = option(("mlp",), help="names, as `bayesify.models.build` takes")
    methods: tuple[Entry, ...] = option((), help="what is compared")
    seeds: tuple[int, ...] = option((0, 1, 2), help="of the initial weights and the fits")
    split: str = option(
        "test", help="part to judge on; validation is for choosing options", choices=SPLITS
    )
    ood: str | None = option(
        "auto",
        help="foreign data to recognise; auto: photographs, where the data are images; "
        "each-other, of compare: the data next in line; none",
    )
    aspects: Aspects = option(Aspects(), help="what is measured beside quality, OOD and cost")
    num_samples: int = option(32, help="weight samples per prediction", at_least=1)
    batch_size: int = option(64, help="examples per batch in training", at_least=1)
    weights: str | None = option(
        None, help="safetensors file that is loaded into the model before the fit"
    )
    augment: bool = option(False, help="crop and flip training images at random")
    data_dir: str | None = option(None, help="folder to look in for the data; also $BAYESIFY_DATA")
    target: str | None = option(None, help="column to predict, of a CSV file")
    task: str | None = option(
        None, help="classification, multilabel or regression, where the data do not tell"
    )
    folds: tuple[int, ...] | Literal["all"] | None = option(
        None,
        help="which of the given test parts, of an .npz file that has several: their average "
        "counts, as over seeds; all: every one; none: the first",
    )
    image_size: int | None = option(
        None, help="height and width that images of a folder are brought to"
    )
    split_seed: int = option(
        0, help="decides which examples are held out, whatever the seed of the fit"
    )
    validation_share: float = option(
        VALIDATION_SHARE,
        help="how much of what is not for testing is held out of training; 0: nothing",
    )
    device: str = option("cpu", help="where to compute: cpu, cuda, cuda:1")
    command: str = option("", help="the command line that asked for it, to be repeated")
    literature: tuple[Literature, ...] = option((), help="published numbers beside the results")

    @property
    def trained(self) -> Entry:
        """The row whose adversarial inputs are tried on all others: the suite's own MAP, if any."""
        plain = [each for each in self.methods if isinstance(each.method, MAP)]
        return plain[0] if plain else Entry("map", MAP())

    def __post_init__(self) -> None:
        for name in ("data", "models", "methods", "seeds", "folds"):
            if getattr(self, name) in ((), ""):
                raise OptionError(f"{name}: expected at least one to compare, got none.")
        check_options(self)
        if self.folds != "all" and isinstance(self.folds, str):
            raise OptionError(f"folds={self.folds!r}: expected 'all' or whole numbers.")
        if self.ood == "each-other" and len(self.data) < 2:
            raise OptionError("ood='each-other': expected two data sets or more, got one.")
        self._check_validation()
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise OptionError(f"seeds={self.seeds}: expected whole numbers from 0 to 2**32 - 1.")
        labels = [entry.label for entry in self.methods]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise OptionError(
                f"methods: {', '.join(sorted(twice))} is asked for more than once; give each "
                f"[[method]] a label of its own."
            )

    def _check_validation(self) -> None:
        check_validation_share(self.validation_share)
        scaled = [entry.label for entry in self.methods if entry.scaled]
        wanted = ["split='validation'"] * (self.split == "validation") + scaled
        if wanted and not self.validation_share:
            raise OptionError(
                f"{', '.join(wanted)}: expected a validation part, got validation_share=0, which "
                f"cuts none; raise it, or leave out what needs it."
            )


ASIDE = ("methods", "aspects", "command", "literature")
FIELDS = {name: each for name, each in fields_of(Suite).items() if name not in ASIDE}
"""What a file or a flag says in one value."""


def entries(names: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> tuple[Entry, ...]:
    """Rows for method names, each with the options that `settings` holds for it.

    Args:
        names: Keys of `METHODS`, possibly with the suffix `+ts`; "all" is every one that can
            treat the model.
        settings: Options by method name; a suffix makes no difference.

    Raises:
        OptionError: unknown names, or options for a method that is not compared.
    """
    asked = [*names]
    names = [each for name in asked for each in _named(name)]
    known = {name.removesuffix(SCALED) for name in names}
    for name in settings:
        if name not in known:
            raise OptionError(
                f"an option for {name!r} is given, which is not compared: expected one of "
                f"{', '.join(sorted(known))}{near(name, known)}"
            )
    return tuple(
        replace(entry, if_possible=name not in asked)
        for name in dict.fromkeys(names)
        for entry in _entries({"name": name, **settings.get(name.removesuffix(SCALED), {})})
    )


def read(path: str | Path, **overrides: Any) -> Suite:
    """The suite of a TOML file; see the top of this file.

    Args:
        path: The file.
        overrides: Fields of `Suite` that win over the file's.

    Raises:
        DataError: no such file, or no TOML.
        OptionError: unknown keys or impossible values.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: expected a suite in TOML, got none ({reason}).") from error
    methods, literature = table.pop("method", None), table.pop("literature", [])
    aspects = _aspects(path, table)
    given = {}
    for key, value in table.items():
        if key not in FIELDS:
            raise OptionError(
                f"{path}: unknown key {key!r}; expected {', '.join(FIELDS)}, evaluate, [[method]], "
                f"[[literature]] or a table of an aspect ({', '.join(ASPECTS)})"
                f"{near(key, (*FIELDS, 'evaluate', *ASPECTS))}"
            )
        single = key in ("data", "models") and isinstance(value, str)  # may have commas
        given[key] = FIELDS[key].read([value] if single else value, f"{path}: {key}: expected")
    for name in () if "models" in overrides else given.get("models", ()):
        if is_code(name):
            raise OptionError(
                f"{path}: models: {name!r} is code, and a file may not choose what runs here: if "
                f"you know and trust it, name all models of the suite yourself, with --model."
            )
    if methods is not None:
        given["methods"] = tuple(each for row in _rows(path, methods) for each in _entries(row))
    else:
        given["methods"] = entries(DEFAULT_METHODS, {})
    given["literature"] = read_literature(str(path), literature, given.get("data", Suite.data))
    given["aspects"] = aspects
    return Suite(**(given | overrides))


def _aspects(path: str | Path, table: dict[str, Any]) -> Aspects:
    """What `evaluate` and the tables beside it say; takes them out of `table`."""
    names = table.pop("evaluate", [])
    names = [names] if isinstance(names, str) else names
    tables = {name: table.pop(name) for name in ASPECTS if name in table}
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise OptionError(f"{path}: evaluate: expected a list of names, got {names!r}.")
    for name, each in tables.items():
        if not isinstance(each, Mapping):
            raise OptionError(f"{path}: expected {name} as a table [{name}], got {each!r}.")
    return Aspects().changed(names, tables)


def _named(name: str) -> Sequence[str]:
    return [*METHODS, DEFAULT_METHODS[1]] if name == "all" else [name]


def _entries(row: Mapping[str, Any]) -> list[Entry]:
    options = flat({key: each for key, each in row.items() if key not in ("name", "label")})
    name = row["name"]
    lists = {
        key: each if isinstance(each := options.pop(key), list) else [each]
        for key in [*options]
        if key.startswith(NOISE)
    }
    made = grid(name.removesuffix(SCALED), options)
    label = row.get("label", name)
    return [
        Entry(
            label=" ".join(each for each in (label, varied, noise) if each),
            method=method,
            scaled=name.endswith(SCALED),
            likelihood={key.removeprefix(NOISE): value for key, value in chosen.items()},
        )
        for varied, method in made
        for noise, chosen in combinations(name, lists)
    ]


def _rows(path: str | Path, methods: Any) -> list[Mapping[str, Any]]:
    if not isinstance(methods, list):
        raise OptionError(f"{path}: expected methods as [[method]] tables, got {methods!r}.")
    for row in methods:
        if not isinstance(row.get("name"), str):
            raise OptionError(
                f"{path}: expected every [[method]] to have a name, one of {', '.join(METHODS)}."
            )
    return methods
