"""How a comparison is shown while it works: a bar for the fit, a line for every finished cell."""

from collections.abc import Sequence

from rich.console import Console

from bayesify.core.errors import BayesifyError
from bayesify.experiments.cell import Cell
from bayesify.experiments.report.records import Record
from bayesify.experiments.run import Watcher
from bayesify.training.callbacks import Callback
from bayesify.training.progress import BatchCounter, ProgressBar


class Terminal(Watcher):
    """Tells on the error stream. Bars are drawn only where it is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = 0
        self.finished = 0
        self.counter = BatchCounter("", console)

    def on_message(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False)

    def on_start(self, total: int, done: int) -> None:
        """How much there is to do."""
        self.total, self.finished = total, done
        if done:
            rest = "nothing is left to do" if done == total else f"{total - done} to go"
            self.on_message(f"{done} of {total} runs were done before, {rest}.")

    def callbacks(self, cell: Cell, number: int) -> Sequence[Callback]:
        """A bar that says which of all cells it belongs to."""
        self.counter = BatchCounter(f"{number}/{self.total}  {cell.name}", self.console)
        return [ProgressBar(self.counter.label, self.console)]

    def on_batch(self, inputs: int) -> None:
        """Count what has been judged."""
        self.counter(inputs)

    def on_cell(self, cell: Cell, record: Record | None, problem: BayesifyError | None) -> None:
        """One line: what was run, and how long the fit took."""
        if record is None:
            self._line(f"[red]failed[/]  {cell.name}")
        else:
            self._line(f"{cell.name}  [dim]{record['cost']['fit_seconds']:.1f} s[/]")

    def on_left_out(self, cell: Cell, problem: BayesifyError) -> None:
        """One line."""
        self._line(f"left out  {cell.name}")

    def _line(self, text: str) -> None:
        self.counter.close()
        self.finished += 1
        self.console.print(f"[dim]{self.finished}/{self.total}[/]  {text}", highlight=False)
