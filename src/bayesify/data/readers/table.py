"""The user's own table, a `.csv` file with a header: one column is the target, the others features.

Columns of numbers are standardised, columns of text become one column of 0 and 1 per text.
The rule for the task: a target that is text or true/false, or that holds whole numbers with at most
20 distinct values, is for classification; every other target is for regression. `task` overrides.
"""

import difflib
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from torch import Tensor

from bayesify.core.errors import DataError
from bayesify.data.encoding import Encoding, is_text
from bayesify.data.raw import Raw, Request

MOST_CLASSES = 20

_UNREADABLE = (
    pd.errors.EmptyDataError,
    pd.errors.ParserError,
    pd.errors.ParserWarning,  # rows longer than the header
    UnicodeDecodeError,
)


def read(request: Request) -> Raw:
    """Features (N, F), float64, and the target as class indices or float64 values."""
    name, columns = str(request.place), _columns(request.place)
    target = _target(name, columns, request.target)
    for column, values in columns.items():
        _check(name, column, values)
    y, class_names, task = _encode(name, columns.pop(target), request.task)
    encoding = Encoding.of(name, columns, target=target)
    return Raw(
        name,
        encoding(name, columns),
        y,
        class_names=class_names,
        task=task,
        measured=encoding.measured,
        encoding=encoding,
    )


def read_rows(path: Path, encoding: Encoding) -> Tensor:
    """Features (N, F), float64, of new rows; the target column may be absent."""
    columns = _columns(path, texts=encoding.texts)
    for column, _ in encoding.features:
        if column in columns:
            _check(str(path), column, columns[column])
    return encoding(str(path), columns)


def is_classes(column: pd.Series) -> bool:
    """The rule above: text, true/false, or at most 20 distinct whole numbers.

    >>> is_classes(pd.Series([1, 2, 2])), is_classes(pd.Series([1.5, 2.0]))
    (True, False)
    """
    if is_text(column) or is_bool_dtype(column):
        return True
    return bool((column == column.round()).all()) and column.nunique() <= MOST_CLASSES


def _columns(path: Path, texts: Collection[str] = ()) -> dict[str, pd.Series]:
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            table = pd.read_csv(
                path,
                index_col=False,
                low_memory=False,
                skipinitialspace=True,
                dtype=dict.fromkeys(texts, str),
            )
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: expected a comma-separated table in UTF-8 with a header ({error}); "
            "save it as such."
        ) from error
    columns = {str(name): values for name, values in table.items()}
    if any(name.startswith("Unnamed: ") for name in columns):
        raise DataError(
            f"{path}: expected a name for every column, got columns without one (row numbers?); "
            "name or drop them."
        )
    if len(table) == 0:
        raise DataError(f"{path}: expected rows below the header, got none; the table is empty.")
    return columns


def _target(name: str, columns: Collection[str], target: str | None) -> str:
    if target is None:
        raise DataError(
            f"{name}: expected the name of the column to predict; pass target=, one of "
            f"{', '.join(columns)}."
        )
    if target not in columns:
        near = difflib.get_close_matches(target, columns, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "pass one of them."
        raise DataError(
            f"{name}: expected target to be one of {', '.join(columns)}, got {target!r}; {hint}"
        )
    if len(columns) < 2:
        raise DataError(
            f"{name}: expected a target and at least one feature, got the column {target!r} only; "
            "add features."
        )
    return target


def _check(name: str, column: str, values: pd.Series) -> None:
    gaps = np.flatnonzero(values.isna())
    if len(gaps):
        raise DataError(
            f"{name}: expected a value in every row, got {len(gaps)} missing in column {column!r} "
            f"(first in row {gaps[0]}); fill them in, or drop these rows or the column."
        )
    if is_numeric_dtype(values) and not np.isfinite(values.to_numpy(np.float64)).all():
        raise DataError(
            f"{name}: expected finite numbers, got infinity in column {column!r}; mend it."
        )


def _encode(name: str, column: pd.Series, task: str | None) -> tuple[Tensor, tuple[str, ...], str]:
    task = task or ("classification" if is_classes(column) else "regression")
    if task == "classification":
        codes, values = pd.factorize(column, sort=True)
        names = tuple(_class_name(value) for value in values)
        return torch.tensor(codes, dtype=torch.int64), names, task
    if task == "multilabel":
        raise DataError(
            f"{name}: expected a table to have one target column, which is not multilabel; save "
            "features and labels as x and y in an .npz file."
        )
    if is_text(column):
        raise DataError(
            f"{name}: expected numbers to regress on, got text in column {column.name!r}; pass "
            "task='classification', or another target."
        )
    return torch.tensor(column.to_numpy(np.float64)), (), task


def _class_name(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
