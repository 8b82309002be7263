"""`bayesify compare`: run a suite, show its tables, write the page."""

import shlex
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console

from bayesify.cli.settings import assignments
from bayesify.cli.showing import show
from bayesify.cli.watching import Terminal
from bayesify.core.errors import OptionError
from bayesify.core.options import to_json
from bayesify.experiments.aspects import ASPECTS
from bayesify.experiments.choices import near
from bayesify.experiments.report import records
from bayesify.experiments.report.page import write
from bayesify.experiments.run import Outcome, run
from bayesify.experiments.suite import DEFAULT_METHODS, SCALED, Suite, entries, read
from bayesify.methods import METHODS

FAILED, INTERRUPTED = 2, 130


def compare(
    *,
    out: str,
    suite: str | None,
    fresh: bool,
    json: bool,
    print_config: bool,
    arguments: list[str],
    **given: Any,
) -> int:
    """Run what is not done; returns the exit code.

    Args:
        out: Folder of the results.
        suite: TOML file; flags win over it.
        fresh: Start over.
        json: Whether standard output gets the records and nothing else.
        print_config: Print the suite and stop.
        arguments: The whole command line, to repeat it.
        given: The other flags, by fields of `Suite`, and `set`; None where not given.
    """
    command = shlex.join(["bayesify", *(each for each in arguments if each != "--fresh")])
    asked = _suite(given, suite, command)
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


def _suite(given: dict[str, Any], file: str | None, command: str) -> Suite:
    settings, of_aspects = settings_of(given.pop("set") or [], given.pop("gradient_samples"))
    names, asked = given.pop("methods"), given.pop("evaluate")
    fields = {name: value for name, value in given.items() if value is not None}
    for name in ("data", "models"):
        if name in fields:
            fields[name] = listed(fields[name])
    for name in ("seeds", "folds"):
        if fields.get(name, "all") != "all":
            fields[name] = tuple(_number(f"--{name}", each) for each in listed(fields[name]))
    if fields.get("ood") == "none":
        fields["ood"] = None
    if file is None or names is not None or settings:
        fields["methods"] = entries(listed(names) if names else DEFAULT_METHODS, settings)
    suite = (
        Suite(**fields, command=command) if file is None else read(file, **fields, command=command)
    )
    aspects = suite.aspects.changed(None if asked is None else listed(asked), of_aspects)
    return replace(suite, aspects=aspects)


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


def _number(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise OptionError(
            f"{flag}: expected whole numbers with commas between them, got {text!r}."
        ) from error


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
