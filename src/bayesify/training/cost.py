"""What a piece of work costs: seconds, peak memory and operations, measured around it."""

import time
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations inside a `with` block, by torch's own formulas.

    Products of matrices, convolutions and attention count, two operations a multiply-add; all else
    is free. Unlike torch's `FlopCounterMode` it keeps no books by module, whose hooks forbid
    gradients with respect to a network's inputs.

    Attributes:
        total: So far.

    Example:
        >>> with FlopCounter() as counter:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 5)
        >>> counter.total
        60
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation of torch and count it."""
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # one that is made of others is counted by these
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result
