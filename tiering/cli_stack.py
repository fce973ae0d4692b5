"""`tiering stack`: the embedded servers up, down, and how they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

# Inside the functions, since every other command of `tiering` would wait for it too.
if TYPE_CHECKING:
    from infra.local import Stack

app = typer.Typer(help="The embedded stack: PostgreSQL, Redis Cluster, MongoDB protocol, S3; real servers from wheels.")
_err = Console(stderr=True)

Directory = Annotated[
    Path, typer.Option("--dir", envvar="TIERING_STACK_DIR", help="Where ports, passwords, data and logs live.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DEFAULT_DIRECTORY = Path(".stack")


@app.command()
def up(directory: Directory = DEFAULT_DIRECTORY, as_json: Json = False, env: Path = Path(".env")) -> None:
    """Start what is not running, and write the servers' URLs to `.env`.

    A service whose TIERING_*_URL is set in the environment is yours: it is neither started nor written.
    """
    from infra.local import SERVICES, Stack, find_given_services

    given = find_given_services()
    with _progress() as report:
        stack = Stack(directory, services=[name for name in SERVICES if name not in given], report=report)
        stack.up()
    stack.write_env(env)
    _show(stack, as_json)


@app.command()
def down(directory: Directory = DEFAULT_DIRECTORY, as_json: Json = False) -> None:
    """Stop the servers; their data stays."""
    from infra.local import Stack

    with _progress() as report:
        stack = Stack(directory, report=report)
        stack.down()
    _show(stack, as_json)


@app.command()
def status(directory: Directory = DEFAULT_DIRECTORY, as_json: Json = False) -> None:
    """Show every server, its process and port; exit code 1 when one is down."""
    from infra.local import Stack

    if not _show(Stack(directory), as_json):
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[str, str], None]]:
    """Show each service's news on stderr: as one changing line on a terminal, as lines elsewhere."""
    news: dict[str, str] = {}
    with _err.status("the stack") as line:

        def report(service: str, what: str) -> None:
            news[service] = what
            if _err.is_terminal:
                line.update(" · ".join(f"{name} {text}" for name, text in sorted(news.items())))
            else:
                _err.print(f"{service}: {what}", highlight=False)

        yield report


def _show(stack: Stack, as_json: bool) -> bool:
    """Print the servers; return whether all are up."""
    servers = stack.status()
    rows = [
        {"server": name, "up": process is not None, "pid": process.pid if process else None, "port": stack.port(name)}
        for name, process in servers.items()
    ]
    if as_json:
        typer.echo(json.dumps({"directory": str(stack.directory), "servers": rows}))
    else:
        table = Table("server", "state", "pid", "port")
        for row in rows:
            table.add_row(str(row["server"]), "up" if row["up"] else "down", str(row["pid"] or ""), str(row["port"]))
        Console().print(table)
    return all(row["up"] for row in rows)
