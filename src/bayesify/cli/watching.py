"""How a comparison is shown while it works: a bar for the fit, a line for every finished cell."""

from collections.abc import Sequence

from rich.console import Console

from bayesify.callbacks import Callback
from bayesify.compare.cell import Cell
from bayesify.compare.run import Watcher
from bayesify.progress import BatchCounter, ProgressBar
from bayesify.report.records import Record


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

    def on_cell(self, cell: Cell, record: Record | None, problem: str) -> None:
        """One line: what was run, and how long the fit took."""
        self.counter.close()
        self.finished += 1
        count = f"[dim]{self.finished}/{self.total}[/]"
        if record is None:
            self.console.print(f"{count}  [red]failed[/]  {cell.name}", highlight=False)
            return
        seconds = record["cost"]["fit_seconds"]
        self.console.print(f"{count}  {cell.name}  [dim]{seconds:.1f} s[/]", highlight=False)
