"""A cell of a comparison: one method on one model, one fold of the data and one seed."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from bayesify.core.options import to_json
from bayesify.experiments.suite import Entry


@dataclass(frozen=True)
class Cell:
    """One run, and all that decides its result.

    Args:
        entry: The method.
        model: Name of the model.
        data: Name of the data, as tables show it.
        fold: Which of its given test parts, None where there is nothing to choose.
        seed: Of the initial weights and of the fit.
        split: The part that is judged on.
        ood: Foreign data, None for none.
        setup: The other settings of the suite, with digests of the files that it reads.
    """

    entry: Entry
    model: str
    data: str
    fold: int | None
    seed: int
    split: str
    ood: str | None
    setup: dict[str, Any]

    @property
    def name(self) -> str:
        """For people: "stf · digits, mlp · seed 0"."""
        fold = "" if self.fold is None else f"fold {self.fold} · "
        return f"{self.entry.label} · {self.data}, {self.model} · {fold}seed {self.seed}"

    @property
    def identity(self) -> str:
        """Cells of the same identity have the same result; it does not depend on time."""
        return digest({"label": self.entry.label, "scaled": self.entry.scaled, **self._fitted})

    @property
    def fit_identity(self) -> str:
        """Cells of the same one share a fit: they differ in what is done after it."""
        return digest(self._fitted)

    @property
    def _fitted(self) -> dict[str, Any]:
        fold = {} if self.fold is None else {"fold": self.fold}
        return fold | {
            "options": to_json(self.entry.method),
            "model": self.model,
            "data": self.data,
            "seed": self.seed,
            "split": self.split,
            "ood": self.ood,
            "setup": self.setup,
        }


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON value.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
