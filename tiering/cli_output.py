"""What the `tiering` command says: one JSON document or a table on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, date, datetime
from math import isfinite
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tiering import errors

FAILED, BAD_ARGUMENTS, DIFFERENCES, INTERRUPTED = 1, 2, 3, 130
USAGE = ("find dataset", "read unit name")
"""Operations whose NotFound means that the command line named something that is not there."""


def exit_code(error: errors.TieringError) -> int:
    """Choose the exit code: 2 where the command line or the configuration is wrong, else 1."""
    from tiering.plan.queries import BadQuery

    if isinstance(error, errors.SettingsError | errors.PolicyError | BadQuery):
        return BAD_ARGUMENTS
    return BAD_ARGUMENTS if isinstance(error, errors.NotFound) and error.operation in USAGE else FAILED


def prepare_logging() -> None:
    """Send log lines to stderr, where they are in nobody's way."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


def emit(document: Any, as_json: bool, *tables: Table) -> None:
    """Print the one JSON document, or the tables."""
    if as_json:
        sys.stdout.write(json.dumps(plain(document), ensure_ascii=False) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables:
        console.print(table)


def plain(value: Any) -> Any:
    """Turn values into what JSON has: instants as ISO text, decimals as text with every digit, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat() if value.tzinfo is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and not isfinite(value):
        return str(value)  # JSON has no NaN and no infinity
    if value is None or isinstance(value, bool | int | float):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def say_error(error: BaseException, as_json: bool) -> None:
    """Print an error as one line on stderr; with --json also as the one document on stdout."""
    sys.stderr.write(" ".join(str(error).split()) + "\n")
    if as_json:
        fields = {"type": type(error).__name__, "message": str(error)}
        if isinstance(error, errors.TieringError):
            fields |= {"operation": error.operation, "subject": error.subject, "cause": error.cause, "hint": error.hint}
        sys.stdout.write(json.dumps({"error": fields}, ensure_ascii=False) + "\n")


def note(text: str) -> None:
    """Say something to the person, on stderr."""
    sys.stderr.write(text + "\n")


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Build a table; numbers stand on the right, instants as `2024-01-05 08:00`."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    kept = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(kept) and all(isinstance(row[index], int | float) or row[index] is None for row in kept)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in kept:
        table.add_row(*(shown(value) for value in row))
    return table


def shown(value: Any) -> str:
    """Write a value for people."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M}Z"
    return value.isoformat() if isinstance(value, date) else str(value).replace("[", "\\[")


def bytes_shown(count: int) -> str:
    """Write a size: `12.3 MB`."""
    size = float(count)
    for letter in ("B", "kB", "MB", "GB"):
        if size < 1000 or letter == "GB":
            return f"{size:,.0f} {letter}" if letter == "B" else f"{size:,.1f} {letter}"
        size /= 1000
    raise AssertionError("unreachable")


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Any]:
    """Show a progress bar on stderr while the body runs; yield `advance(count, text="", total=None)`."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def advance(count: int = 1, text: str = "", total: int | None = None) -> None:
            bar.update(task, advance=count, description=f"{what} {text}".strip(), total=total)

        yield advance
