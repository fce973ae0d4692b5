"""The part of the `tiering` command that keeps the log of a store going into the vault: a daemon in the foreground."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from tiering import cli_output as out
from tiering import errors

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Source = Annotated[str | None, typer.Option(help="main, or hot and warm where they are two servers.  [the only one]")]

app = typer.Typer(help="Keep the log of a store going into the backup bucket.", no_args_is_help=True)


@app.command("postgresql")
def stream_postgresql(
    source: Source = None,
    slot: Annotated[str, typer.Option(help="Replication slot; made when missing.")] = "tiering",
    name: Annotated[
        str, typer.Option(help="Application name; in synchronous_standby_names no acknowledged commit is ever lost.")
    ] = "tiering",
    full: Annotated[bool, typer.Option(help="Take a full backup by itself when the log has a hole.")] = True,
    as_json: Json = False,
) -> None:
    """Stream PostgreSQL's log into the bucket until SIGTERM or Ctrl-C; what was received is stored first.

    Holes and lags are told on stderr within a minute.

    Examples: `tiering stream postgresql` · `tiering stream postgresql --source warm --no-full`
    """
    from tiering import cli_kit
    from tiering.model_backup import BackupKind
    from tiering.ops.backup_postgres import backup
    from tiering.ops.catalogue import Catalogue
    from tiering.ops.wal import Receiver
    from tiering.ops.wal_watch import Watch
    from tiering.settings import load_recovery_settings, load_settings
    from tiering.stores.pg_wal import sources_of

    settings = load_settings()
    chosen, url = chosen_source(sources_of(settings.hot_pg_url, settings.warm_pg_url), source)
    catalogue = Catalogue(cli_kit.vault_of(load_recovery_settings()))
    receiver = Receiver(catalogue, url, chosen, slot, name, tell=out.note)

    def take_full() -> None:
        from infra.local.binaries import find_postgres_bin
        from tiering.stores.pg_tools import PgTools

        done = backup(catalogue, url, chosen, BackupKind.FULL, datetime.now(UTC), PgTools(find_postgres_bin()))
        out.note(f"{chosen}: took full backup {done.backup_id}")

    watch = Watch(catalogue, url, chosen, tell=out.note, take_full=take_full if full else None)
    stop = stop_on_signals()
    out.note(f"streaming the log of PostgreSQL {chosen}; end with Ctrl-C")
    watcher = threading.Thread(target=watch.run, args=(stop,), name="watch")
    teller = threading.Thread(target=tell_progress, args=(stop, lambda: str(receiver.progress)), name="progress")
    for thread in (watcher, teller):
        thread.start()
    try:
        receiver.run(stop)
    finally:
        stop.set()
        watcher.join()
        teller.join()
    progress = receiver.progress
    document = {"source": chosen, "timeline": progress.timeline, "objects": progress.objects}
    document |= {"stored": progress.stored_lsn, "behind_bytes": progress.received - progress.stored}
    out.emit(document, as_json, out.table_of("streamed", list(document), [list(document.values())]))


def wal_push(
    path: Annotated[Path, typer.Argument(help="The file, as PostgreSQL writes it for %p.")],
    source: Annotated[str, typer.Option(help="main, or hot and warm where they are two servers.")] = "main",
    as_json: Json = False,
) -> None:
    """Store one finished file of the log: archive_command = 'tiering wal-push %p'. Never replaces what is stored.

    Example: `tiering wal-push pg_wal/000000010000000000000002`
    """
    from tiering import cli_kit
    from tiering.ops.catalogue import Catalogue
    from tiering.ops.wal import push
    from tiering.settings import load_recovery_settings

    done = push(Catalogue(cli_kit.vault_of(load_recovery_settings())), source, path)
    out.emit({"file": path.name, "done": done}, as_json, out.table_of("", ["file", "done"], [[path.name, done]]))


def wal_fetch(
    name: Annotated[str, typer.Argument(help="Of the file, as PostgreSQL writes it for %f.")],
    path: Annotated[Path, typer.Argument(help="Where to put it, as PostgreSQL writes it for %p.")],
    source: Annotated[str, typer.Option(help="main, or hot and warm where they are two servers.")] = "main",
) -> None:
    """Deliver one file of the log: restore_command = 'tiering wal-fetch %f %p', e.g. of a standby.

    Ends with 0: delivered and checked. 1: the bucket was asked, and the log ends before this file. 200: everything
    else; PostgreSQL then stops, and does not take an outage or a hole for the end of the log.

    Example: `tiering wal-fetch 000000010000000000000002 /tmp/000000010000000000000002`
    """
    from tiering import cli_kit
    from tiering.ops.catalogue import Catalogue
    from tiering.ops.wal_fetch import CANNOT_TELL, fetch
    from tiering.settings import load_recovery_settings

    try:
        found = fetch(Catalogue(cli_kit.vault_of(load_recovery_settings())), source, name, path)
    except (errors.TieringError, OSError) as exc:
        out.say_error(exc, False)
        sys.exit(CANNOT_TELL)
    sys.exit(0 if found else 1)


def chosen_source(sources: Mapping[str, SecretStr], source: str | None) -> tuple[str, SecretStr]:
    """Choose one of several servers by --source.

    Raises:
        BadParameter: there are two and none was named, or there is none of that name.
    """
    if source is None and len(sources) == 1:
        return next(iter(sources.items()))
    if source not in sources:
        raise typer.BadParameter(f"name one of: {', '.join(sources)}", param_hint="--source")
    return str(source), sources[str(source)]


def stop_on_signals() -> threading.Event:
    """Make an event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def tell_progress(stop: threading.Event, line: Callable[[], str], every_seconds: float = 1.0) -> None:
    """Keep one line of news on a terminal."""
    if not sys.stderr.isatty():
        return
    while not stop.wait(every_seconds):
        sys.stderr.write(f"\r\x1b[K{line()}")
        sys.stderr.flush()
    sys.stderr.write("\n")
