"""The part of `tiering stream` that keeps MongoDB's oplog going into the vault."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Annotated

import typer

from tiering import cli_output as out
from tiering import errors
from tiering.cli_stream import Json, Source, chosen_source, stop_on_signals, tell_progress


def stream_mongodb(
    source: Source = None,
    full: Annotated[bool, typer.Option(help="Take a full backup by itself when the log has a hole.")] = True,
    as_json: Json = False,
) -> None:
    """Archive MongoDB's oplog into the bucket until SIGTERM or Ctrl-C: what a majority has, within a second or two.

    Holes are told on stderr. After a restore the server has another history, which is archived beside the old one.

    Examples: `tiering stream mongodb` · `tiering stream mongodb --source warm --no-full`
    """
    from tiering import cli_kit
    from tiering.ops import backup_mongo, oplog
    from tiering.ops.catalogue import Catalogue
    from tiering.settings import load_recovery_settings, load_settings
    from tiering.stores.documents_errors import no_url
    from tiering.stores.mongo_server import sources_of

    settings = load_settings()
    if settings.hot_mongo_url is None:
        raise no_url("mongodb")
    chosen, url = chosen_source(sources_of(settings.hot_mongo_url, settings.warm_mongo_url), source)
    catalogue = Catalogue(cli_kit.vault_of(load_recovery_settings()))
    ranges: list[oplog.Archived] = []
    gaps: list[oplog.Gap] = []
    troubles = [""]

    def take_full() -> None:
        try:
            done = backup_mongo.backup(catalogue, url, chosen, datetime.now(UTC))
        except errors.TieringError as exc:
            out.note(f"ALARM {chosen}: no full backup could be taken: {exc}")
        else:
            out.note(f"{chosen}: took full backup {done.backup_id}")

    def on_gap(gap: oplog.Gap) -> None:
        gaps.append(gap)
        out.note(f"ALARM {chosen}: a hole in the archive after {gap.after or 'its end'}: {gap.reason}")
        if full:
            threading.Thread(target=take_full, name="full backup").start()

    def on_trouble(exc: errors.TransientError) -> None:
        if str(exc) != troubles[-1]:
            troubles.append(str(exc))
            out.note(f"{chosen}: {exc}")

    def told(archived: oplog.Archived) -> None:
        ranges[:1] = [archived]

    def line() -> str:
        if not ranges:
            return "nothing archived yet"
        return f"archived through {ranges[0].through}, {ranges[0].behind.total_seconds():.1f} s behind"

    stop = stop_on_signals()
    out.note(f"archiving the oplog of MongoDB {chosen}; end with Ctrl-C")
    teller = threading.Thread(target=tell_progress, args=(stop, line), name="progress")
    teller.start()
    try:
        oplog.stream(
            catalogue,
            url,
            chosen,
            clock=lambda: datetime.now(UTC),
            stop=stop,
            told=told,
            on_gap=on_gap,
            on_trouble=on_trouble,
        )
    finally:
        stop.set()
        teller.join()
    document = {"source": chosen, "through": ranges[0].through if ranges else "", "gaps": len(gaps)}
    out.emit(document, as_json, out.table_of("archived", list(document), [list(document.values())]))
