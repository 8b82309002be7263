"""Progress on the terminal: a bar as a callback of `fit`, and a counter for `evaluate`."""

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """One bar a phase, with the loss of the last epoch, on the terminal's error stream.

    Args:
        label: What is being fitted.
        console: Where to draw; a stream that is no terminal gets nothing.
    """

    def __init__(self, label: str = "", console: Console | None = None) -> None:
        self.label = label
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None

    def on_phase_start(self, phase: str, epochs: int, steps_per_epoch: int) -> None:
        """Show an empty bar."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("epochs  loss {task.fields[loss]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        name = f"{self.label}: {phase}" if self.label else phase
        self._task = self._progress.add_task(name, total=epochs, loss="-")
        self._progress.start()

    def on_step(self, log: dict[str, float]) -> None:
        """Nothing: the bar counts epochs."""

    def on_epoch_end(self, entry: dict[str, Any]) -> None:
        """Move on by an epoch."""
        if self._progress is not None:
            self._progress.update(self._task, advance=1, loss=f"{entry['loss']:.4f}")

    def on_phase_end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


class BatchCounter:
    """How many inputs have been predicted or attacked, as `on_batch` of an evaluation.

    Args:
        label: What is being judged.
        console: Where to draw; a stream that is no terminal gets nothing.
    """

    def __init__(self, label: str = "", console: Console | None = None) -> None:
        self.label = label
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None

    def __call__(self, inputs: int) -> None:
        """Count on; the first call shows the line."""
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}: {task.completed:,.0f} inputs judged"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
                disable=not self.console.is_terminal,
            )
            self._task = self._progress.add_task(self.label)
            self._progress.start()
        self._progress.update(self._task, advance=inputs)

    def close(self) -> None:
        """Take the line away; the next call counts anew."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
