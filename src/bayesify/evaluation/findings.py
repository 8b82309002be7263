"""What one part of an evaluation finds: numbers for tables, curves for pictures."""

from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Findings:
    """Numbers and curves by name. Two of them are joined by `|`.

    Args:
        metrics: Numbers for tables.
        curves: What the report draws, JSON-ready.

    Example:
        >>> (Findings({"nll": 0.2}) | Findings({"ece": 0.01})).metrics
        {'nll': 0.2, 'ece': 0.01}
    """

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __or__(self, other: Self) -> Self:
        twice = (
            self.metrics.keys() & other.metrics.keys() | self.curves.keys() & other.curves.keys()
        )
        if twice:
            raise ValueError(f"found twice: {', '.join(sorted(twice))}")
        return type(self)(self.metrics | other.metrics, self.curves | other.curves)
