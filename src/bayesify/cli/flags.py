"""Flags: those that several commands share, and those that the fields of options make."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from bayesify.core.errors import OptionError
from bayesify.core.fields import Field, near, shown
from bayesify.experiments.aspects import ASPECTS
from bayesify.experiments.suite import FIELDS
from bayesify.models import MODELS

DATA, MODEL, HOW, JUDGE, OUTPUT = "Data", "Model", "How to fit", "How to judge", "Output"
"""Headings of the panels in --help."""

OF = "Options of "
"""Before a method's name: the heading of its options."""

PANEL = {"weights": MODEL, "split": JUDGE, "ood": JUDGE, "num_samples": JUDGE, "seeds": HOW}
PANEL |= {"batch_size": HOW, "device": HOW}
"""Where the fields of a suite are, that are not about data."""


def flag(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    """An option with a help text, under a heading."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)


Run = Annotated[str, typer.Argument(help="Folder that bayesify fit wrote.", metavar="RUN")]
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
Overwrite = Annotated[
    bool, flag("--overwrite", help="Replace a posterior saved there.", panel=OUTPUT)
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
SEVERAL = " Commas between several."

_Usage: Any = typer.BadParameter.__bases__[0]
"""What the parser raises, wherever this version of typer keeps the class."""


class Command(TyperCommand):
    """A command that may have options of a method: those are its help, and of no other."""

    def _of_method(self) -> list[Any]:
        return [e for e in self.params if (getattr(e, "rich_help_panel", "") or "").startswith(OF)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; the flags that every method shares stay out of that of one method."""
        of = self._of_method()
        for each in self.params if of else ():
            each.hidden = each not in of  # pyright: ignore[reportAttributeAccessIssue]
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The values of the flags."""
        of = self._of_method()
        try:
            return super().parse_args(ctx, args)
        except _Usage as error:
            if not of or not hasattr(error, "possibilities"):
                raise
            name, names = error.option_name.lstrip("-"), [e.name or "" for e in self.params]
            raise OptionError(
                f"{of[0].rich_help_panel.removeprefix(OF)} has no option --{name}: it has "
                f"{', '.join(each.opts[0] for each in of)}, beside the flags of every fit"
                f"{near(name.replace('-', '_'), names)}"
            ) from error


def with_flags(
    command: Callable[..., int],
    options: Mapping[str, Field] | None = None,
    panel: str | None = None,
) -> Callable[..., int]:
    """The command as typer reads it: every parameter has a flag.

    Args:
        command: A parameter that has no flag of its own is a field of `Suite`, or `arguments`: the
            whole command line. Its `**more` gets those of `options` that are given, as text.
        options: Fields by name; one that has the name of another flag is reached by --set only.
        panel: Their heading, None for the fields of a suite.
    """
    own = inspect.signature(command).parameters
    ready = {name: each for name, each in own.items() if hasattr(each.annotation, "__metadata__")}
    plain = [e.name for e in own.values() if e.name not in ready and e.kind is e.KEYWORD_ONLY]
    shared = {name: FIELDS[name] for name in plain if name != "arguments"}
    more = {name: each for name, each in (options or {}).items() if name not in own}
    made = [
        *ready.values(),
        *(_flag(each, None) for each in shared.values()),
        *(_flag(each, panel) for each in more.values()),
        _parameter("debug", Debug, False),
    ]

    def run(context: typer.Context, **values: Any) -> int:
        values = {n: each for n, each in values.items() if n != "debug" and n not in more} | {
            name: values[name] for name in more if values[name] is not None
        }
        for name, each in shared.items():
            values[name] = each.default if values[name] is None else read(each, values[name])
        if "arguments" in own:
            values["arguments"] = context.obj
        return command(**values)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    run.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [context, *(each.replace(kind=each.KEYWORD_ONLY) for each in made)]
    )
    run.__doc__ = command.__doc__
    return run


def read(field: Field, text: Any) -> Any:
    """The value of a flag.

    Raises:
        OptionError: it is of another type, or out of bounds.
    """
    return field.read(text, f"{_name(field)}: expected")


def assignments(texts: Iterable[str]) -> dict[str, str]:
    """Values by name, of `--set NAME=VALUE`.

    Raises:
        OptionError: a text is no assignment.

    Example:
        >>> assignments(["pretrain.epochs=20"])
        {'pretrain.epochs': '20'}
    """
    values = {}
    for text in texts:
        name, equals, value = (each.strip() for each in text.partition("="))
        if not (name and equals and value):
            raise OptionError(f"--set {text}: expected NAME=VALUE, such as pretrain.epochs=20.")
        values[name] = value
    return values


def _name(field: Field) -> str:
    return f"--{field.name.replace('_', '-')}"


def _flag(field: Field, panel: str | None) -> inspect.Parameter:
    """A flag that is not given by default. A bool of a suite goes without a value."""
    told = "none" in field.help or field.default is not None
    limits = "" if field.bounds.choices else field.bounds.describe()
    text = f"{field.help[:1].upper()}{field.help[1:]}{f' ({limits})' if limits else ''}."
    kinds = [each.metavar for each in field.kinds if told or each.metavar != "none"]
    switch = panel is None and field.hint is bool
    info = flag(
        _name(field),
        help=f"{text} [dim]default {shown(field.default)}[/]" if told and not switch else text,
        panel=panel or PANEL.get(field.name, DATA),
        metavar=None if switch else "|".join(field.bounds.choices or dict.fromkeys(kinds)),
    )
    return _parameter(field.name, Annotated[bool | None if switch else str | None, info], None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)
