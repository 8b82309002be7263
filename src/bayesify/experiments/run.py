"""Run the cells of a suite that are not done yet, and keep each as soon as it is finished."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from bayesify.core.errors import BayesifyError, UnsupportedModelError
from bayesify.core.options import to_json
from bayesify.evaluation.findings import Findings
from bayesify.evaluation.temperature import temperature_scaled
from bayesify.experiments.cell import Cell
from bayesify.experiments.choices import likelihood_of
from bayesify.experiments.judging import Judge
from bayesify.experiments.measure import (
    cost,
    git_revision,
    quick_collection,
    release_memory,
    warm_up,
)
from bayesify.experiments.problems import Arena, arenas, build, cells, some_of
from bayesify.experiments.report.records import Record
from bayesify.experiments.results import Results
from bayesify.experiments.suite import Suite
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.base import Posterior
from bayesify.training.callbacks import Callback
from bayesify.training.cost import CostMeter
from bayesify.training.fit import fit, versions


class Watcher:
    """Hears how a comparison goes. This one is deaf; the command line has one that prints."""

    def on_message(self, text: str) -> None:
        """Something the user should know."""

    def on_start(self, total: int, done: int) -> None:
        """`done` of `total` cells were finished before."""

    def callbacks(self, cell: Cell, number: int) -> Sequence[Callback]:
        """What watches the fit of `cell`, the `number`-th of all, counted from 1."""
        return ()

    def on_batch(self, inputs: int) -> None:
        """A batch of so many inputs has been judged."""

    def on_cell(self, cell: Cell, record: Record | None, problem: BayesifyError | None) -> None:
        """A cell is finished, with its record, or has failed with a `problem`."""

    def on_left_out(self, cell: Cell, problem: BayesifyError) -> None:
        """The method of a cell cannot treat its model, and need not."""


@dataclass
class Outcome:
    """What a comparison came to.

    Args:
        total: Number of cells.
        records: Of the suite's finished cells, in the suite's order.
        literature: Published numbers for the suite's data, as records.
        failed: Names of the cells that failed, with the reason.
        left_out: Likewise of those whose method cannot treat the model, and need not.
        interrupted: Whether the user stopped it.
    """

    total: int
    records: list[Record] = field(default_factory=list)
    literature: list[Record] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False


def run(
    suite: Suite, out: str | Path, *, fresh: bool = False, watcher: Watcher | None = None
) -> Outcome:
    """Run what is not done.

    Args:
        suite: What to compare.
        out: Folder of `results.jsonl`.
        fresh: Move earlier results aside and start over.
        watcher: Hears how it goes.

    Raises:
        BayesifyError: the folder, the data or a model cannot be used; nothing has been run.
    """
    watcher = watcher or Watcher()
    results = Results(out)
    ready = arenas(suite)
    if fresh and (old := results.start_over()):
        watcher.on_message(f"Starting over; the earlier results are now {old}.")
    if results.repair():
        watcher.on_message(f"Cut an unfinished last line off {results.file}; its cell runs again.")
    plan = [(arena, cell) for arena in ready for cell in cells(suite, arena)]
    earlier = results.records()
    done = {record.get("cell"): record for record in earlier}
    outcome = Outcome(total=len(plan), literature=_literature(suite, ready))
    for record in outcome.literature:
        if record not in earlier:
            results.append(record)
    todo = [(arena, cell) for arena, cell in plan if cell.identity not in done]
    watcher.on_start(len(plan), len(plan) - len(todo))
    try:
        with quick_collection() as set_aside:
            _Work(suite, results, watcher, outcome, done, set_aside).run(todo)
    except KeyboardInterrupt:
        outcome.interrupted = True
    outcome.records = [done[cell.identity] for _, cell in plan if cell.identity in done]
    return outcome


def _literature(suite: Suite, ready: Sequence[Arena]) -> list[Record]:
    """Published numbers are those of a test part."""
    sources = {arena.source: arena.name for arena in ready} if suite.split == "test" else {}
    return [record for each in suite.literature for record in each.records(sources)]


@dataclass
class _Work:
    """One pass over the cells that are left."""

    suite: Suite
    results: Results
    watcher: Watcher
    outcome: Outcome
    done: dict[Any, Record]
    set_aside: Callable[[], None]
    warm: set[Any] = field(default_factory=set)
    revision: str | None = field(default_factory=git_revision)
    surrogate: tuple[Any, Posterior] | None = None

    def run(self, todo: list[tuple[Arena, Cell]]) -> None:
        number = self.outcome.total - len(todo)
        for _, group in groupby(todo, key=lambda each: each[1].fit_identity):
            shared = list(group)
            arena, first = shared[0]
            posterior, problem = self._try(lambda: self._fit(arena, first, number + 1))  # noqa: B023
            for _, cell in shared:
                number += 1
                record = None
                if posterior is not None:
                    record, problem = self._try(lambda: self._record(arena, cell, posterior))  # noqa: B023
                self._finish(cell, record, problem)

    def _try(self, work: Callable[[], Any]) -> tuple[Any, BayesifyError | None]:
        try:
            return work(), None
        except BayesifyError as error:
            return None, error

    def _finish(self, cell: Cell, record: Record | None, problem: BayesifyError | None) -> None:
        if cell.entry.if_possible and isinstance(problem, UnsupportedModelError):
            self.outcome.left_out.append((cell.name, str(problem)))
            self.watcher.on_left_out(cell, problem)
            return
        if record is None:
            self.outcome.failed.append((cell.name, str(problem)))
        else:
            self.results.append(record)
            self.done[cell.identity] = record
        self.watcher.on_cell(cell, record, problem)

    def _surrogate(self, arena: Arena, cell: Cell) -> Posterior:
        """MAP on the same data, from the same initial weights: whose attacks are transferred."""
        place = (arena.name, arena.fold, cell.model, cell.seed)
        if self.surrogate is None or self.surrogate[0] != place:
            self.surrogate = (place, self._trained(arena, replace(cell, entry=self.suite.trained)))
        return self.surrogate[1]

    def _shadowed(self, judge: Judge, arena: Arena, cell: Cell) -> Findings:
        return judge.shadowed(
            lambda seed: build(self.suite, arena, cell.model, seed=seed),
            cell.entry.method,
            self._likelihood(arena, cell),
            batch_size=self.suite.batch_size,
            device=self.suite.device,
            out=self.results.folder / "shadows" / cell.fit_identity,
        )

    def _likelihood(self, arena: Arena, cell: Cell) -> Likelihood:
        return likelihood_of(arena.splits.task, cell.setup.get("likelihood", {}))

    def _fit(self, arena: Arena, cell: Cell, number: int) -> Posterior:
        posterior = self._trained(arena, cell, callbacks=self.watcher.callbacks(cell, number))
        if cell.entry.method == self.suite.trained.method and "attacks" in self.suite.aspects:
            self.surrogate = ((arena.name, arena.fold, cell.model, cell.seed), posterior)
        return posterior

    def _trained(self, arena: Arena, cell: Cell, callbacks: Sequence[Callback] = ()) -> Posterior:
        suite, method, train = self.suite, cell.entry.method, arena.splits.train
        held_out = arena.splits.validation if len(arena.splits.validation) else None
        likelihood = self._likelihood(arena, cell)
        model = build(suite, arena, cell.model, seed=cell.seed)
        kind = (type(method), cell.model, arena.name)
        if kind not in self.warm:
            self.warm.add(kind)
            few = some_of(train, 2 * suite.batch_size)
            warm_up(
                model,
                few,
                method,
                validation=some_of(held_out, 2 * suite.batch_size) if held_out else None,
                likelihood=likelihood,
                device=suite.device,
            )
            self.set_aside()  # what a first fit has imported
        release_memory()
        return fit(
            model,
            train,
            method,
            validation=held_out,
            likelihood=likelihood,
            seed=cell.seed,
            device=suite.device,
            batch_size=suite.batch_size,
            callbacks=callbacks,
        )

    def _record(self, arena: Arena, cell: Cell, posterior: Posterior) -> Record:
        suite, splits = self.suite, arena.splits
        if cell.entry.scaled:
            posterior = _scaled(posterior, arena, suite)
        held_out = splits.validation if suite.split == "validation" else splits.test
        judge = Judge(
            suite.aspects,
            splits,
            held_out,
            arena.ood,
            suite.num_samples,
            surrogate=lambda: self._surrogate(arena, cell),
            tell=self.watcher.on_message,
            on_batch=self.watcher.on_batch,
        )
        judged = judge(posterior)
        if not cell.entry.scaled:  # with a temperature they would say the same
            judged = judged.joined(self._shadowed(judge, arena, cell))
        example, _ = held_out[[0]]
        price = cost(posterior, example, self.results.folder, num_samples=suite.num_samples)
        if cell.entry.scaled:
            price |= {
                name: price[name] + 1 for name in ("trainable_parameters", "stored_parameters")
            }
        return {
            "cell": cell.identity,
            "method": cell.entry.label,
            "model": cell.model,
            "data": cell.data,
            "fold": cell.fold,
            "seed": cell.seed,
            "split": cell.split,
            "ood": cell.ood,
            "task": splits.task,
            "options": to_json(cell.entry.method),
            "setup": cell.setup,
            **judged.to_json(),
            "cost": price,
            "versions": versions(),
            "git_revision": self.revision,
            "command": suite.command,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _scaled(posterior: Posterior, arena: Arena, suite: Suite) -> Posterior:
    """Temperature scaled on the validation part; its time is part of the fit's."""
    with CostMeter(posterior.device) as meter:
        scaled = temperature_scaled(
            posterior, arena.splits.validation, num_samples=suite.num_samples
        )
    if scaled.record is not None:
        scaled.record = replace(scaled.record, seconds=scaled.record.seconds + meter.seconds)
    return scaled
