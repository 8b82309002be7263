"""What may watch a fit: anything with the methods of `Callback`."""

from typing import Any, Protocol


class Callback(Protocol):
    """Called by `fit` as it goes."""

    def on_phase_start(self, phase: str, epochs: int, steps_per_epoch: int) -> None:
        """A method begins; `phase` is its class name."""
        ...

    def on_step(self, log: dict[str, float]) -> None:
        """A batch has been learnt from."""
        ...

    def on_epoch_end(self, entry: dict[str, Any]) -> None:
        """An epoch is over; `entry` is its line of the history."""
        ...

    def on_phase_end(self) -> None:
        """The method is done, or was interrupted."""
        ...
