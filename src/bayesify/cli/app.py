"""The commands by name. A command, its flags and all it needs are imported when it is asked for."""

from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from bayesify.core.version import __version__


class Command(NamedTuple):
    """Where a command is, and what the list of commands says of it."""

    module: str
    line: str
    example: str


COMMANDS = {
    "compare": Command(
        "comparing",
        "Compare methods on the same data: one table, one page of pictures.",
        "bayesify compare --data digits --seeds 0,1,2 --out runs/demo",
    ),
    "fit": Command(
        "fitting",
        "Fit one method to one data set and save the posterior, ready for evaluate and predict.",
        "bayesify fit stf --model mlp --data digits --epochs 10 --out runs/a",
    ),
    "evaluate": Command(
        "judging",
        "Judge a saved posterior: accuracy, calibration, and how well it knows foreign data.",
        "bayesify evaluate runs/a --split test --ood photos",
    ),
    "predict": Command(
        "predicting",
        "Predict new inputs with a saved posterior, and say how sure it is of each.",
        "bayesify predict runs/a new.csv --out predictions.csv",
    ),
    "compress": Command(
        "compressing",
        "Save a fitted posterior again in a fraction of the bytes, by weights that share "
        "Gaussians.",
        "bayesify compress runs/a --codes 64",
    ),
    "diagnose": Command(
        "diagnosing",
        "Retrain each layer alone, from random starts: which one should be Bayesian?",
        "bayesify diagnose runs/a --starts 3 --epochs 10",
    ),
    "report": Command(
        "showing",
        "Make a page of the results of bayesify compare and evaluate, and show their tables.",
        "bayesify report runs/a runs/b --out report.html",
    ),
    "data": Command(
        "showing",
        "List the data sets known by name: where they were found, or how to get them.",
        "bayesify data --data-dir ~/data",
    ),
}


class _Commands(TyperGroup):
    """A list of commands that stand for those in their modules."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, made of its function; `args` are those that follow its name."""
        name, _, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, None, rest
        module = import_module(f"bayesify.cli.{COMMANDS[name].module}")
        flags = import_module("bayesify.cli.flags")
        make = getattr(module, "MADE", {}).get(name)
        function = make(rest) if make else flags.with_flags(getattr(module, name))
        example = getattr(function, "example", COMMANDS[name].example)
        alone = _typer()
        alone.command(name, cls=flags.Command, epilog=f"Example: {example}")(function)
        return name, typer.main.get_command(alone), rest


def _typer(**more: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, **more
    )


app = _typer(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.line)(lambda: None)


@app.callback(invoke_without_command=True)
def _bayesify(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Turn any PyTorch network into a Bayesian one, and prove what it is worth.

    Start with [bold]bayesify compare --data digits --out runs/demo[/].
    """
    if version:
        print(f"bayesify {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
