"""The command line: `bayesify compare | fit | evaluate | predict | compress | diagnose | ...`.

A user's mistake is one sentence on the error stream and exit code 2; Ctrl-C is exit code 130.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from rich.console import Console

from bayesify.core.errors import BayesifyError

USER_ERROR, INTERRUPTED = 2, 130

_Complaint: Any = typer.BadParameter.__bases__[0].__bases__[0]
"""What the parser of the command line raises, wherever this version of typer keeps the class."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Example:
        >>> main(["--version"])
        bayesify 0.1.0
        0
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Read once, when torch is loaded. By default its threads spin for long while they wait, which
    # on a machine that is busy otherwise makes small networks a hundred times slower; threads
    # that sleep at once make them three times slower on an idle one. This is in between.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    app = import_module("bayesify.cli.app").app
    try:
        code = app(arguments, prog_name="bayesify", standalone_mode=False, obj=arguments)
        return code or 0  # --help has none
    except _Complaint as error:
        return _complain(error.format_message())
    except (BayesifyError, OSError) as error:
        if "--debug" in arguments:
            raise
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        Console(stderr=True).print("Stopped.")
        return INTERRUPTED


def _complain(message: str) -> int:
    console = Console(stderr=True)
    console.print("[bold red]Error:[/]", end=" ")
    console.print(" ".join(message.split()), markup=False, highlight=False, soft_wrap=True)
    return USER_ERROR
