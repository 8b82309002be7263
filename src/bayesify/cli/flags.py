"""Flags that several commands share, and the flags that methods' options make."""

import inspect
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, Literal

import typer

from bayesify.core.options import Bounds, to_json
from bayesify.core.types import Where
from bayesify.data.examples import VALIDATION_SHARE
from bayesify.experiments.aspects import ASPECTS
from bayesify.experiments.choices import alternatives, options_of
from bayesify.methods import METHODS
from bayesify.models import MODELS
from bayesify.training.method import Method

DATA, MODEL, HOW, JUDGE, OUTPUT, OPTIONS = (
    "Data",
    "Model",
    "How to fit",
    "How to judge",
    "Output",
    "Options of the method",
)
"""Headings of the panels in --help."""


def flag(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    """An option with a help text, under a heading."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)


DataDir = Annotated[
    str | None,
    flag(
        "--data-dir",
        help="Folder to look in for the data; also $BAYESIFY_DATA.",
        panel=DATA,
        metavar="DIR",
    ),
]
Target = Annotated[
    str | None,
    flag("--target", help="Column to predict, of a CSV file.", panel=DATA, metavar="COLUMN"),
]
Task = Annotated[
    str | None,
    flag(
        "--task",
        help="classification, multilabel or regression, where the data do not tell.",
        panel=DATA,
        metavar="TASK",
    ),
]
Fold = Annotated[
    int | None,
    flag("--fold", help="Which test part, of an .npz file that has several.", panel=DATA),
]
Folds = Annotated[
    str | None,
    flag(
        "--folds",
        help="Which test parts, of an .npz file that has several, as in 0,1,2; all is every one. "
        "[dim]default the first[/]",
        panel=DATA,
    ),
]
ValidationShare = Annotated[
    float | None,
    flag(
        "--validation-share",
        help="How much of what is not for testing is held out of training; 0: nothing. "
        f"[dim]default {VALIDATION_SHARE}[/]",
        panel=DATA,
        metavar="X",
    ),
]
ImageSize = Annotated[
    int | None,
    flag(
        "--image-size",
        help="Height and width that images of a folder are brought to.",
        panel=DATA,
        metavar="PIXELS",
    ),
]
SplitSeed = Annotated[
    int | None,
    flag("--split-seed", help="Decides which examples are held out. [dim]default 0[/]", panel=DATA),
]
Augment = Annotated[
    bool | None,
    flag("--augment", help="Crop and flip training images at random.", panel=DATA),
]
Weights = Annotated[
    str | None,
    flag(
        "--weights",
        help="Safetensors file to load into the model before the fit.",
        panel=MODEL,
        metavar="FILE",
    ),
]
OwnModel = Annotated[
    str | None,
    flag(
        "--model",
        help="Your function module:function that builds the network, where RUN was fitted with "
        "one: no folder can name code that runs here, only you.",
        panel=MODEL,
        metavar="MODULE:FUNCTION",
    ),
]
BatchSize = Annotated[
    int | None,
    flag("--batch-size", help="Examples per batch in training. [dim]default 64[/]", panel=HOW),
]
Device = Annotated[
    str | None,
    flag("--device", help="Where to compute: cpu, cuda, cuda:1. [dim]default cpu[/]", panel=HOW),
]
Samples = Annotated[
    int | None,
    flag("--num-samples", help="Weight samples per prediction. [dim]default 32[/]", panel=JUDGE),
]
Ood = Annotated[
    str | None,
    flag(
        "--ood",
        help="Foreign data to recognise, or none. [dim]default photos for images[/]",
        panel=JUDGE,
    ),
]
Evaluate = Annotated[
    str | None,
    flag(
        "--evaluate",
        help="What to measure beside quality, foreign data and cost: some of "
        f"{', '.join(ASPECTS)}, with commas between them; all is all but shadows, which fits many "
        "posteriors more. [dim]default none[/]",
        panel=JUDGE,
        metavar="ASPECTS",
    ),
]
GradientSamples = Annotated[
    int | None,
    flag(
        "--gradient-samples",
        help="Weight samples in each gradient of an attack; with few, robustness is overrated. "
        "[dim]default 20[/]",
        panel=JUDGE,
    ),
]
TransferFrom = Annotated[
    str | None,
    flag(
        "--transfer-from",
        help="Another saved posterior, such as MAP's, whose adversarial inputs are tried too.",
        panel=JUDGE,
        metavar="RUN",
    ),
]
AsJson = Annotated[
    bool, flag("--json", help="Print JSON on standard output and nothing else there.", panel=OUTPUT)
]
Debug = Annotated[bool, flag("--debug", help="Show the traceback of an error.", panel=OUTPUT)]
PrintConfig = Annotated[
    bool,
    flag("--print-config", help="Print what would be done as JSON, and stop.", panel=OUTPUT),
]
SOURCES_HELP = (
    "Name of a data set (see [bold]bayesify data[/]), or your own .npz file, .csv file "
    "or folder of images per class."
)
MODELS_HELP = (
    f"One of {', '.join(MODELS)}; mlp-50-20 is an mlp with hidden layers of 50 and 20 units; "
    "or module:function of your own."
)


def with_method_flags(command: Callable[..., Any]) -> inspect.Signature:
    """The command's signature with the methods' options in place of its `**options`.

    An option of the name of a flag that the command has already is reached by `--set` only.
    """
    signature = inspect.signature(command)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    taken = {each.name for each in own}
    return signature.replace(
        parameters=[*own, *(each for each in method_flags() if each.name not in taken)]
    )


def method_flags() -> list[inspect.Parameter]:
    """One flag for every option that any method has; none is given by default.

    Help, bounds and defaults come from the fields of the methods' dataclasses.
    """
    owners: dict[str, dict[str, type[Method]]] = {}
    for name, kind in METHODS.items():
        for option in options_of(kind):
            owners.setdefault(option, {})[name] = kind
    return [_method_flag(option, kinds) for option, kinds in owners.items()]


def _method_flag(option: str, kinds: dict[str, type[Method]]) -> inspect.Parameter:
    kind: Any = next(iter(kinds.values()))
    metadata = kind.__dataclass_fields__[option].metadata
    bounds = metadata.get("bounds", Bounds())
    info = flag(
        f"--{option.replace('_', '-')}",
        help=_help(metadata.get("help", ""), bounds, _defaults(option, kinds)),
        panel=OPTIONS,
        metavar="|".join(map(str, bounds.choices or ())) or _metavar(options_of(kind)[option]),
    )
    return inspect.Parameter(
        option,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, info],  # text: `compare.choices` reads and judges it
    )


def _help(text: str, bounds: Bounds, defaults: str) -> str:
    limits = "" if bounds.choices else bounds.describe()
    return f"{text[:1].upper()}{text[1:]}{f' ({limits})' if limits else ''}. [dim]{defaults}[/]"


def _defaults(option: str, kinds: dict[str, type[Method]]) -> str:
    """Each default with the methods that have it; the methods go unsaid where it is all of them."""
    owners: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        owners.setdefault(_text(getattr(kind(), option)), []).append(name)
    if len(owners) == 1 and len(kinds) == len(METHODS):
        return f"default {next(iter(owners))}"
    return "default " + "; ".join(f"{value} for {', '.join(of)}" for value, of in owners.items())


def _text(value: Any) -> str:
    """A default as the user would type it."""
    named = {kind: name for name, kind in METHODS.items()}
    if type(value) in named:
        return named[type(value)]
    if value is None or isinstance(value, bool):
        return str(value).lower()
    plain = to_json(value)
    if isinstance(plain, dict):  # a selector: FirstLayer is first_layer
        kind = plain["kind"]
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in kind).lstrip("_")
    return str(value)


def _metavar(hint: Any) -> str:
    names = {int: "N", float: "X", bool: "true|false", str: "TEXT", Where: "WEIGHTS"}
    names |= {Method: "METHOD", Literal["auto"]: "auto", NoneType: "none"}
    return "|".join(dict.fromkeys(names.get(each, "VALUES") for each in alternatives(hint)))
