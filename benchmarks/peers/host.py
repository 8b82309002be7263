"""A process that has imported one library, and forks a process of its own for each cell.

Importing torch and a library takes many times as long as a fit here. So it is done once, and not
inside of what is measured: a cell is a fork of a process that has imported everything and has the
data, but has never called the library.
"""

import importlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from cell import run
from problems import parts

UNFINISHED = "not finished after"
Line = dict[str, Any]
_CONTEXT = multiprocessing.get_context("fork")


class Host:
    """Answers for the rows of one module of this folder.

    Args:
        module: Its name.
        data_dir: Where the data sets are.
    """

    def __init__(self, module: str, data_dir: str | None) -> None:
        self.module = module
        self._ours, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(module, data_dir, theirs))
        self._process.start()

    def ask(self, asked: Line, limit: float) -> Line:
        """What `cell.run` finds, or the error that stopped it; at most `limit` seconds."""
        self._ours.send((asked, limit))
        return json.loads(self._ours.recv())

    def close(self) -> None:
        """Ends the process."""
        self._ours.send(None)
        self._process.join()


def _serve(module: str, data_dir: str | None, line: Connection) -> None:
    torch.set_num_threads(1)
    _quieten()
    start, library, failed = time.process_time(), None, ""
    try:
        library = importlib.import_module(module)
    except Exception as error:  # a row says so
        failed = f"{type(error).__name__}: {error}"
    imported = time.process_time() - start
    while (work := line.recv()) is not None:
        asked, limit = work
        if failed:
            line.send(json.dumps({"error": failed}))
            continue
        given = parts(asked["data"], data_dir, asked["seed"])
        fit = getattr(library, asked["where"].split(":")[1])
        found = _forked(lambda: run(fit, asked, given), limit)  # noqa: B023  called at once
        line.send(json.dumps({"import_seconds": imported, **found}))


def _forked(work: Callable[[], Line], limit: float) -> Line:
    """The result of `work` in a process of its own."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_report, args=(work, theirs))
    process.start()
    theirs.close()
    if not ours.poll(limit):
        process.kill()
        process.join()
        return {"error": f"{UNFINISHED} {limit:.0f} s"}
    try:
        found = json.loads(ours.recv())
    except EOFError:
        process.join()
        found = {"error": f"the process ended with {process.exitcode}"}
    process.join()
    return found


def _report(work: Callable[[], Line], line: Connection) -> None:
    try:
        found = work()
    except Exception as error:  # a row says so
        found = {"error": f"{type(error).__name__}: {error}"}
    line.send(json.dumps(found))


def _quieten() -> None:
    """Libraries print what they like; errors come back as lines of the record."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
