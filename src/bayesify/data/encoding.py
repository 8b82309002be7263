"""How the columns of a table become features: kept, so that new rows are encoded the same way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from torch import Tensor

from bayesify.core.errors import DataError

MOST_TEXTS = 1000


@dataclass(frozen=True)
class Encoding:
    """A column of numbers is one feature; a column of text is one of 0 and 1 per distinct text.

    Args:
        target: The column that is predicted.
        features: Name of each other column with its texts in order, None for numbers.

    Example:
        >>> table = {"size": pd.Series([1, 2]), "colour": pd.Series(["red", "blue"])}
        >>> encoding = Encoding.of("t.csv", table, target="weight")
        >>> encoding.features
        (('size', None), ('colour', ('blue', 'red')))
        >>> encoding("t.csv", table).tolist()
        [[1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """

    target: str
    features: tuple[tuple[str, tuple[str, ...] | None], ...]

    @classmethod
    def of(cls, name: str, columns: Mapping[str, pd.Series], *, target: str) -> Self:
        """The encoding of the table `name`, whose feature columns are given."""
        return cls(
            target, tuple((column, _texts(name, column, columns[column])) for column in columns)
        )

    def __call__(self, name: str, columns: Mapping[str, pd.Series]) -> Tensor:
        """Features (N, F), float64, of a table with these columns; others are ignored.

        Raises:
            DataError: a column is missing, or holds a text that training did not know.
        """
        if missing := [column for column, _ in self.features if column not in columns]:
            raise DataError(
                f"{name}: expected the columns of the training data, "
                f"{', '.join(column for column, _ in self.features)}; "
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
            )
        parts = [_encoded(name, column, columns[column], texts) for column, texts in self.features]
        return torch.tensor(np.concatenate(parts, 1))

    @property
    def measured(self) -> Tensor:
        """Which features are numbers, bool (F,)."""
        widths = [(texts is None, 1 if texts is None else len(texts)) for _, texts in self.features]
        return torch.tensor([number for number, width in widths for _ in range(width)])

    @property
    def texts(self) -> list[str]:
        """Names of the columns that hold text."""
        return [column for column, texts in self.features if texts is not None]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"target": self.target, "features": [list(each) for each in self.features]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        features = ((name, None if t is None else tuple(t)) for name, t in value["features"])
        return cls(value["target"], tuple(features))


def is_text(column: pd.Series) -> bool:
    """Whether a column holds neither numbers nor true and false."""
    return not is_numeric_dtype(column) and not is_bool_dtype(column)


def _texts(name: str, column: str, values: pd.Series) -> tuple[str, ...] | None:
    if not is_text(values):
        return None
    if (count := values.nunique()) > MOST_TEXTS:
        raise DataError(
            f"{name}: expected at most {MOST_TEXTS} distinct texts per column, got {count} in "
            f"{column!r}; drop it, or turn it into numbers."
        )
    return tuple(sorted(str(each) for each in values.unique()))


def _encoded(
    name: str, column: str, values: pd.Series, texts: tuple[str, ...] | None
) -> np.ndarray:
    """One column as (N, 1) numbers, or (N, K) zeros and ones; float64."""
    if texts is None:
        if is_text(values):
            raise DataError(
                f"{name}: expected numbers in column {column!r}, as in the training data, got "
                f"text such as {values.iloc[0]!r}; mend it."
            )
        return values.to_numpy(np.float64)[:, None]
    given = values.astype(str).to_numpy()
    if unknown := sorted(set(given) - set(texts)):
        raise DataError(
            f"{name}: column {column!r} holds {', '.join(map(repr, unknown[:5]))}, which the "
            f"training data did not; it knows {', '.join(map(repr, texts[:10]))}."
        )
    return (given[:, None] == np.array(texts)).astype(np.float64)
