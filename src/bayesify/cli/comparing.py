"""`bayesify compare`: run a suite, show its tables, write the page."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from bayesify.cli import flags
from bayesify.cli.flags import DATA, HOW, MODEL, OUTPUT, SEVERAL, assignments, flag
from bayesify.cli.showing import show
from bayesify.cli.watching import Terminal
from bayesify.core.errors import OptionError
from bayesify.core.fields import near
from bayesify.core.options import to_json
from bayesify.experiments.aspects import ASPECTS
from bayesify.experiments.report import records
from bayesify.experiments.report.page import write
from bayesify.experiments.run import Outcome, run
from bayesify.experiments.suite import DEFAULT_METHODS, FIELDS, SCALED, Suite, entries, read
from bayesify.methods import METHODS

FAILED, INTERRUPTED = 2, 130


def compare(
    *,
    data: Annotated[
        str | None,
        flag("--data", help=f"{flags.SOURCES_HELP}{SEVERAL} [dim]default digits[/]", panel=DATA),
    ] = None,
    models: Annotated[
        str | None,
        flag("--model", help=f"{flags.MODELS_HELP}{SEVERAL} [dim]default mlp[/]", panel=MODEL),
    ] = None,
    methods: Annotated[
        str | None,
        flag(
            "--methods",
            help=f"Some of {', '.join(METHODS)}; +ts adds temperature scaling, as in map+ts; all: "
            f"what suits the model.{SEVERAL} [dim]default {','.join(DEFAULT_METHODS)}[/]",
            panel=HOW,
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        flag(
            "--set",
            help="An option of a method or of an aspect, as in stf.temperature=0.1 or "
            "attacks.eps=0.1,0.3; may be repeated.",
            panel=HOW,
            metavar="NAME.OPTION=VALUE",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        flag(
            "--suite",
            help="TOML file that says what to compare; flags win over it.",
            panel=HOW,
            metavar="FILE",
        ),
    ] = None,
    evaluate: flags.Evaluate = None,
    gradient_samples: flags.GradientSamples = None,
    out: Annotated[
        str, flag("--out", help="Folder for results.jsonl and report.html.", panel=OUTPUT)
    ] = "runs/compare",
    fresh: Annotated[
        bool, flag("--fresh", help="Start over; earlier results are moved aside.", panel=OUTPUT)
    ] = False,
    json: flags.AsJson = False,
    print_config: flags.PrintConfig = False,
    arguments: list[str],
    **given: Any,
) -> int:
    """Compare methods on the same data: one table, one page of pictures.

    Fits every method with every model, data set, fold and seed, judges each on held-out and on
    foreign data, and measures what it costs; with --evaluate all also under attack, under
    corruption, for what it gives away of its training data, and for what can be guaranteed.
    Finished runs are kept: the same command again does what is missing.
    """
    texts = given | {"data": data, "models": models}
    fields = {
        name: flags.read(FIELDS[name], text) for name, text in texts.items() if text is not None
    }
    of_methods, of_aspects = settings_of(set or [], gradient_samples)
    command = shlex.join(["bayesify", *(each for each in arguments if each != "--fresh")])
    fields["command"] = command
    if suite is None or methods is not None or of_methods:
        names = DEFAULT_METHODS if methods is None else listed(methods)
        fields["methods"] = entries(names, of_methods)
    asked = Suite(**fields) if suite is None else read(suite, **fields)
    aspects = asked.aspects.changed(None if evaluate is None else listed(evaluate), of_aspects)
    asked = replace(asked, aspects=aspects)
    if print_config:
        print(dumps(config(asked), indent=2))
        return 0
    console = Console(stderr=True)
    outcome = run(asked, out, fresh=fresh, watcher=Terminal(console))
    if json:
        for record in outcome.records + outcome.literature:
            print(dumps(record))
    if outcome.records:
        show(outcome.records + outcome.literature, stderr=json)
        page = write(records.read(out), Path(out) / "report.html", title="bayesify compare")
        console.print(f"Pictures and all numbers: {page}", highlight=False, soft_wrap=True)
    return _farewell(outcome, command, console)


def made(arguments: list[str]) -> Callable[..., int]:
    """The command, with the options of a suite for flags."""
    return flags.with_flags(compare, FIELDS)


MADE = {"compare": made}


def config(suite: Suite) -> dict[str, Any]:
    """A suite as JSON, every default filled in."""
    aside = ("methods", "command", "aspects")
    plain = {name: each for name, each in vars(suite).items() if name not in aside}
    plain["evaluate"] = suite.aspects.to_json()
    plain["methods"] = [
        {
            "label": each.label,
            "temperature_scaled": each.scaled,
            "options": to_json(each.method),
            "likelihood": each.likelihood,
        }
        for each in suite.methods
    ]
    plain["literature"] = [vars(each) for each in suite.literature]
    return plain


def settings_of(
    texts: list[str], gradient_samples: int | None
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """`stf.temperature=0.1` as options by method, and `attacks.steps=20` as options by aspect.

    `--gradient-samples N` is short for `--set attacks.gradient_samples=N`.
    """
    of_methods: dict[str, dict[str, Any]] = {}
    of_aspects: dict[str, dict[str, Any]] = {}
    for key, value in assignments(texts).items():
        name, dot, option = key.partition(".")
        name = name.removesuffix(SCALED)
        if not dot or name not in (*METHODS, *ASPECTS):
            raise OptionError(
                f"--set {key}={value}: expected METHOD.OPTION=VALUE with a method among "
                f"{', '.join(METHODS)}, or an aspect among {', '.join(ASPECTS)}"
                f"{near(name, (*METHODS, *ASPECTS))}"
            )
        (of_aspects if name in ASPECTS else of_methods).setdefault(name, {})[option] = value
    if gradient_samples is not None:
        of_aspects.setdefault("attacks", {})["gradient_samples"] = gradient_samples
    return of_methods, of_aspects


def listed(text: str) -> tuple[str, ...]:
    """What stands between the commas."""
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _farewell(outcome: Outcome, command: str, console: Console) -> int:
    told = [("left out", each) for each in outcome.left_out]
    told += [("[red]failed[/]", each) for each in outcome.failed]
    for what, (name, problem) in told:
        console.print(f"{what}  {name}: ", end="", highlight=False, soft_wrap=True)
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    if outcome.interrupted:
        done = f"{len(outcome.records)} of {outcome.total} runs are done and kept"
        text = f"Stopped: {done}. To go on: {command}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return INTERRUPTED
    return FAILED if outcome.failed else 0
