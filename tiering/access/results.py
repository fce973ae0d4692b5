"""Rows in the form that the caller wants: dicts, an Arrow table, or a pandas DataFrame."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa

from tiering import errors
from tiering.access.ranges import Rows

Form = Literal["rows", "arrow", "pandas"]
"""rows: a list of dicts; arrow: pyarrow.Table; pandas: pandas.DataFrame with Arrow's types kept."""


def shaped(rows: Rows, form: Form) -> Any:
    """Put rows into a form.

    Raises:
        PermanentError: there is no such form.
    """
    if form == "rows":
        return [dict(zip(rows.columns, row, strict=True)) for row in rows.tuples]
    columns = list(zip(*rows.tuples, strict=True)) or [() for _ in rows.columns]
    return of_table(pa.table([pa.array(list(column)) for column in columns], names=list(rows.columns)), form)


def of_table(table: pa.Table, form: Form) -> Any:
    """Put an Arrow table into a form; raises as `shaped`."""
    if form == "rows":
        return table.to_pylist()
    if form == "arrow":
        return table
    if form == "pandas":
        import pandas as pd  # half a second, paid only by those who ask for it

        return table.to_pandas(types_mapper=pd.ArrowDtype)
    raise errors.PermanentError("read", str(form), "no such form", "Use 'rows', 'arrow' or 'pandas'.")
