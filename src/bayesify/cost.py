"""What a piece of work costs: seconds and peak memory, measured around it."""

import time
from types import TracebackType
from typing import Self

import torch

STATUS = "/proc/self/status"
CLEAR_REFS = "/proc/self/clear_refs"


class CostMeter:
    """Seconds and peak memory of the work inside a `with` block.

    On an accelerator the peak is that of the allocator. On a CPU it is how far the resident
    memory of the process rose above its level at entry (Linux only): memory that the process
    held and reuses does not count again, so small jobs may read 0.

    Attributes:
        seconds: Wall-clock time.
        peak_memory_bytes: Peak, or None where the system does not tell.

    Example:
        >>> with CostMeter() as cost:
        ...     total = sum(range(1000))
        >>> cost.seconds > 0
        True
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.peak_memory_bytes: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._resident = _reset_peak_resident()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_memory_bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._resident is not None:
            self.peak_memory_bytes = max(0, _status("VmHWM") - self._resident)
        self.seconds = time.perf_counter() - self._start


def _reset_peak_resident() -> int | None:
    """Bytes resident now, after the kernel's high-water mark is set to it; None off Linux."""
    try:
        with open(CLEAR_REFS, "w") as file:
            file.write("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(field: str) -> int:
    with open(STATUS) as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
