"""The same job with other libraries and with bayesify, in one table.

    python benchmarks/peers/compare.py --data-dir DIR
    python benchmarks/peers/compare.py --data-dir DIR --data digits --only ours,laplace
    python benchmarks/peers/compare.py --table

For each row of `roster.py` and each data set: first the learning rate of its grid with the best NLL
on the validation part of seed 0; then, with that rate, one fit a seed, judged on the test part.
Each of these cells runs in a process of its own on one thread (`host.py`, `cell.py`). Appends a
line of JSON a cell to --out and skips what is there; a row that fails, or takes longer than --limit
seconds, leaves a line with its error. `--table` prints the tables of that file, and runs nothing.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from host import UNFINISHED, Host, Line
from problems import SEEDS
from roster import ROWS, Row
from table import tables

import bayesify

FOLDER = Path(__file__).parent
HOSTS: list[Host] = []
"""The process that is at work: one or none."""


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--data", default=",".join(SEEDS), help="data sets, separated by commas")
    parser.add_argument("--only", help="parts of the names of rows, separated by commas")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "peers.jsonl")
    parser.add_argument("--limit", type=float, default=300, help="seconds a cell may take")
    parser.add_argument("--table", action="store_true", help="print the tables only")
    options = parser.parse_args()
    for data in [] if options.table else options.data.split(","):
        for row in ROWS:
            if _wanted(row, options.only):
                _run_row(row, data, options)
    _close()
    if options.table:
        print(tables(_read(options.out)))


def _wanted(row: Row, only: str | None) -> bool:
    named = only is None or any(part in row.where for part in only.split(","))
    return named and (not row.needs or row.needs in bayesify.__all__)


def _run_row(row: Row, data: str, options: argparse.Namespace) -> None:
    """The choice of the rate, then every seed."""
    line = _chosen(row, data, options)
    lr, hopeless = line.get("lr"), "error" in line
    for seed in range(SEEDS[data]):
        case = {"where": row.where, "data": data, "stage": "test", "seed": seed}
        if hopeless:
            _once(case, options, partial(dict, error=line["error"]))
            continue
        line = _once(case, options, partial(_asked, {**case, "lr": lr}, options))
        hopeless = UNFINISHED in line.get("error", "")  # nor will the other seeds be


def _chosen(row: Row, data: str, options: argparse.Namespace) -> Line:
    """What the validation part of seed 0 says, for this row or for the one whose rate it takes."""
    where = row.like or row.where
    case = {"where": where, "data": data, "stage": "choose", "seed": 0}
    if row.like:
        return _chosen(next(each for each in ROWS if each.where == where), data, options)
    return _once(case, options, partial(_asked, {**case, "grid": row.grid}, options))


def _once(case: Line, options: argparse.Namespace, run: Callable[[], Line]) -> Line:
    """The line of a case: the one that is there, or a new one."""
    for line in _read(options.out):
        if case.items() <= line.items():
            return line
    line = case | run()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
    return line


def _asked(asked: Line, options: argparse.Namespace) -> Line:
    """What a cell finds, by the process that has imported its library."""
    host = _host(asked["where"].split(":")[0], options.data_dir)
    start = time.perf_counter()
    found = host.ask(asked, options.limit * len(asked.get("grid", [1])))
    if "lr" in asked:
        found["lr"] = asked["lr"]
    return found | {"cell_seconds": time.perf_counter() - start}


def _host(module: str, data_dir: str | None) -> Host:
    """The one that is there, if it is of the right module; else a new one."""
    if not HOSTS or HOSTS[-1].module != module:
        _close()
        HOSTS.append(Host(module, data_dir))
    return HOSTS[-1]


def _close() -> None:
    while HOSTS:
        HOSTS.pop().close()


def _read(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()
