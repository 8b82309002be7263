"""Scores of regression under the exact mixture: CRPS, and intervals by the PIT of the target.

The probability integral transform of a target is u = F(y), F the predictive distribution function:
uniform when the predictive is right. The central interval of level a holds y iff |2 u - 1| <= a, so
that one u answers for every level:

    coverage(a)    = share of |2 u - 1| <= a
    interval_error = mean over a of |coverage(a) - a|,    a = 0.05, 0.10, ..., 0.95

Sources: Dawid 1984, "The Prequential Approach" (PIT); Gneiting, Balabdaoui & Raftery 2007,
"Probabilistic forecasts, calibration and sharpness"; Kuleshov et al. 2018, arXiv 1807.00263
(calibration curve of regression). What is averaged comes from `Predictive.scores`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.core.errors import OptionError
from bayesify.evaluation.checks import check_pit, check_values

LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))


@dataclass(frozen=True)
class IntervalCalibration:
    """How often central intervals hold the target, over examples and dimensions.

    Args:
        level: What each interval promises to hold.
        coverage: What it holds.
    """

    level: Float[Tensor, " levels"]
    coverage: Float[Tensor, " levels"]

    @property
    def error(self) -> float:
        """Mean over levels of |coverage - level|; 0 is best."""
        return float((self.coverage - self.level).abs().mean())

    def to_json(self) -> dict[str, list[float]]:
        """Lists by name, rounded to six digits after the point."""
        return {
            "level": [round(each, 6) for each in self.level.tolist()],
            "coverage": [round(each, 6) for each in self.coverage.tolist()],
        }


def mean_crps(crps: Float[Tensor, "examples dims"]) -> float:
    """Mean continuous ranked probability score over examples and dimensions, in target units."""
    check_values(crps, crps)
    return float(crps.double().mean())


def interval_coverage(pit: Float[Tensor, "examples dims"], level: float) -> float:
    """Share of targets inside the central interval of that level of their own predictive.

    Raises:
        OptionError: when `level` is not inside (0, 1).

    Example:
        >>> interval_coverage(torch.tensor([[0.5], [0.97]]), 0.9)
        0.5
    """
    if not 0 < level < 1:
        raise OptionError(f"level={level}: expected a share above 0 and below 1.")
    return float(interval_calibration(pit, (level,)).coverage)


def interval_calibration(
    pit: Float[Tensor, "examples dims"], levels: tuple[float, ...] = LEVELS
) -> IntervalCalibration:
    """Coverage of the central intervals of all `levels`.

    Example:
        >>> interval_calibration(torch.tensor([[0.5], [0.9]]), (0.5, 0.9)).to_json()
        {'level': [0.5, 0.9], 'coverage': [0.5, 1.0]}
    """
    check_pit(pit)
    level = torch.tensor(levels, dtype=torch.float64, device=pit.device)
    away = (2 * pit.double() - 1).abs().flatten().sort().values
    held = torch.searchsorted(away, level, right=True)
    return IntervalCalibration(level, held.double() / len(away))
