"""The part of the `tiering` command for backups: what there is, take, verify, restore, let go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiering import cli_output as out
from tiering import errors
from tiering.model_backup import BackupKind, BackupState, StoreName

if TYPE_CHECKING:
    from tiering.model_backup import BackupStrategy, CatalogueEntry
    from tiering.ops.catalogue import Catalogue
    from tiering.plan.backups import Due
    from tiering.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Only = Annotated[StoreName | None, typer.Option("--store", help="Only this store.")]
GRACE = timedelta(hours=1)

backups_app = typer.Typer(help="Backups: what there is, what comes next, what may go.", invoke_without_command=True)


@backups_app.callback()
def backups(context: typer.Context, store: Only = None, as_json: Json = False) -> None:
    """List backups with state, size and age; what comes next by schedule; gaps of the logs.

    A backup is UPLOADED, then VERIFIED (every byte was read), then PROVEN (a server was started on it and found right).

    Examples: `tiering backups` · `tiering backups --store postgresql --json` · `tiering backups retention`
    """
    if context.invoked_subcommand is not None:
        return
    from tiering import cli_backup_kit as kit

    now = datetime.now(UTC)
    settings, catalogue = kit.opened()
    strategy = kit.strategy_of(settings)
    entries = catalogue.entries(store)
    due, gaps = _due(strategy, entries, now, store), kit.gaps_of(catalogue, entries)
    document = {"now": now, "backups": [_told(entry) for entry in entries], "due": due, "gaps": gaps}
    tables = [_entries_table(entries, now), _due_table(due)]
    if gaps:
        tables.append(out.table_of("gaps", ["store", "source", "what"], [(g.store, g.source, g.text) for g in gaps]))
    out.emit(document, as_json, *tables)


@backups_app.command("retention")
def retention(
    store: Only = None,
    apply: Annotated[bool, typer.Option("--apply", help="Let go what may go; else it is only said.")] = False,
    as_json: Json = False,
) -> None:
    """Say for every backup and the log why it is kept or may go; with --apply, let go.

    Nothing goes that a promised moment needs, nor the last proven backups, nor anything while the clock is in doubt.

    Examples: `tiering backups retention` · `tiering backups retention --store postgresql --apply`
    """
    from tiering import cli_backup_kit as kit
    from tiering.cli_moves import actor

    now = datetime.now(UTC)
    settings, catalogue = kit.opened()
    with out.progress("retention") as advance:
        found = kit.retain(settings, catalogue, now, actor(), apply=apply, store=store, progress=advance)
    if apply:
        _mirror(settings, catalogue)
    document, rows = [], []
    for one in found:
        plan = one.plan
        document.append(
            {
                "store": plan.store, "source": plan.source, "refused": plan.refused, "skipped": one.skipped,
                "is_applied": one.is_applied, "freed_bytes": one.freed_bytes, "leftovers": one.leftovers,
                "backups": [
                    {"backup_id": v.entry.backup.backup_id, "is_kept": v.is_kept, "reasons": v.reasons}
                    for v in plan.backups
                ],
                "logs_kept": sum(v.is_kept for v in plan.logs), "logs_removed": len(plan.removed_logs),
            }
        )  # fmt: skip
        rows += [
            (plan.store, plan.source, v.entry.backup.backup_id, "kept" if v.is_kept else "goes", "; ".join(v.reasons))
            for v in plan.backups
        ]
        text = f"{len(plan.logs) - len(plan.removed_logs)} stretches kept, {len(plan.removed_logs)} go"
        rows += [(plan.store, plan.source, "log", "", text)] if plan.logs else []
        for problem in filter(None, (plan.refused, one.skipped)):
            out.note(f"{plan.store}/{plan.source}: nothing goes: {problem}")
    title = "let go" if apply else "would go (add --apply)"
    out.emit({"now": now, "retention": document}, as_json, out.table_of(title, _RETENTION_HEADS, rows))


def backup(
    store: Annotated[StoreName, typer.Argument(help="What to back up.")],
    kind: Annotated[BackupKind, typer.Option(help="How much of it.")] = BackupKind.FULL,
    source: Annotated[str | None, typer.Option(help="Which server: main, hot or warm.  [every one]")] = None,
    proof: Annotated[bool, typer.Option("--prove/--no-prove", help="Start a server on it, and look.")] = True,
    as_json: Json = False,
) -> None:
    """Take a backup now, read it back, and prove it by starting a server on it.

    Examples: `tiering backup postgresql` · `tiering backup postgresql --kind incremental --no-prove`
    """
    from tiering import cli_backup_kit as kit

    settings, catalogue = kit.opened()
    taken = []
    for one in [source] if source else list(kit.sources_of(settings, store)) or [kit.MAIN]:
        with out.progress(f"backing up {store}/{one}") as advance:
            found = kit.take(settings, catalogue, store, kind, one, datetime.now(UTC), _counted(advance))
        with out.progress(f"verifying {found.backup_id}") as advance:
            kit.verify(catalogue, found, datetime.now(UTC), _counted(advance))
        if proof:
            with out.progress(f"proving {found.backup_id}") as advance:
                kit.prove(settings, catalogue, found, datetime.now(UTC), _counted(advance))
        taken.append(catalogue.entry(found.backup_id))
    _mirror(settings, catalogue)
    out.emit({"backups": [_told(entry) for entry in taken]}, as_json, _entries_table(taken, datetime.now(UTC)))


def verify(
    backup_id: Annotated[str | None, typer.Argument(help="Of one backup.  [the newest of each source]")] = None,
    store: Only = None,
    proof: Annotated[bool, typer.Option("--prove", help="Also start a server on it, and look.")] = False,
    as_json: Json = False,
) -> None:
    """Read every byte of a backup and of the log it needs; with --prove start a server on it. Exit code 3: it is bad.

    Examples: `tiering verify` · `tiering verify 20261123T020000Z-full-0a1b2c --prove` · `tiering verify --store redis`
    """
    from tiering import cli_backup_kit as kit

    settings, catalogue = kit.opened()
    newest = {(entry.backup.store, entry.backup.source): entry for entry in catalogue.entries(store)}
    chosen = [catalogue.entry(backup_id)] if backup_id else list(newest.values())
    if not chosen:
        raise errors.NotFound("verify", str(store or "backups"), "there is none", "Take one: `tiering backup STORE`.")
    problems: list[errors.TieringError] = []
    for entry in chosen:
        with out.progress(f"verifying {entry.backup.backup_id}") as advance:
            try:
                kit.verify(catalogue, entry.backup, datetime.now(UTC), _counted(advance))
                if proof:
                    kit.prove(settings, catalogue, entry.backup, datetime.now(UTC), _counted(advance))
            except (errors.VerificationError, errors.NotFound) as exc:
                problems.append(exc)
    _mirror(settings, catalogue)
    after = [catalogue.entry(entry.backup.backup_id) for entry in chosen]
    document = {"backups": [_told(entry) for entry in after], "problems": [str(problem) for problem in problems]}
    out.emit(document, as_json, _entries_table(after, datetime.now(UTC)))
    for problem in problems:
        out.note(str(problem))
    if problems:
        raise typer.Exit(out.DIFFERENCES)


def restore(
    store: Annotated[StoreName, typer.Option(help="What to bring back.")],
    into: Annotated[
        str, typer.Option(help="An empty directory (postgresql), or a server: its URL, or env:NAME of it.")
    ],
    to: Annotated[str, typer.Option(help="`latest`, an instant with time zone, or a log position.")] = "latest",
    source: Annotated[str, typer.Option(help="Which server's backups: main, hot or warm.")] = "main",
    backup_id: Annotated[
        str | None, typer.Option("--backup", help="Begin with this one.  [the newest fitting]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="What lives on that server may be replaced.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a store back to an exact moment, somewhere that is empty.

    A directory with something in it, or a server with data on it, is refused. For a drill, or to recover several stores
    at once, there are `tiering drill` and `tiering recover`.

    Examples: `tiering restore --store postgresql --to 2026-11-22T08:00:00Z --into /srv/restored` ·
    `tiering restore --store mongodb --to latest --into env:RESTORE_URL`
    """
    from tiering import cli_backup_kit as kit
    from tiering.settings import load_url

    _check_moment(to)
    settings, catalogue = kit.opened()
    place = load_url(into.removeprefix("env:")).get_secret_value() if into.startswith("env:") else into
    with out.progress(f"restoring {store}/{source}") as advance:
        done = kit.restore(
            settings, catalogue, store, source, to, place, datetime.now(UTC), is_approved=overwrite,
            backup_id=backup_id, progress=_counted(advance),
        )  # fmt: skip
    out.emit({"restored": store, "source": source, "to": to, "what": done}, as_json, _restored_table(store, done))


_RETENTION_HEADS = ["store", "source", "backup", "verdict", "why"]


def _check_moment(to: str) -> None:
    """Refuse an instant without time zone before anything is opened: nobody knows which moment it is."""
    try:
        found = datetime.fromisoformat(to)
    except ValueError:
        return
    if found.utcoffset() is None:
        raise typer.BadParameter(f"{to!r} has no time zone; write it like {to}Z", param_hint="--to")


def _mirror(settings: Settings, catalogue: Catalogue) -> None:
    """Bring the table in PostgreSQL up to date; the bucket is the truth, so that a server that is away is only told."""
    from tiering import cli_backup_kit as kit

    try:
        kit.mirror(settings, catalogue)
    except (errors.TransientError, errors.PermanentError) as exc:
        out.note(f"tiering.backup, the mirror in PostgreSQL, was not brought up to date: {exc}")


def _counted(advance: Any) -> Any:
    return lambda count, text="": advance(count, text)


def _due(strategy: BackupStrategy, entries: list[CatalogueEntry], now: datetime, store: StoreName | None) -> list[Due]:
    from tiering.plan.backups import due_next

    found: list[Due] = []
    for one in strategy.stores:
        if store in (None, one.store):
            begun = [
                (entry.backup.kind, entry.backup.began_at)
                for entry in entries
                if entry.backup.store is one.store and entry.state is not BackupState.FAILED
            ]
            found += due_next(one, begun, now, GRACE)
    return found


def _told(entry: CatalogueEntry) -> dict[str, object]:
    backup = entry.backup
    return {
        "backup_id": backup.backup_id, "store": backup.store, "source": backup.source, "kind": backup.kind,
        "state": entry.state, "parent_id": backup.parent_id, "began_at": backup.began_at, "ended_at": backup.ended_at,
        "begins": backup.begins, "ends": backup.ends, "size_bytes": backup.size_bytes,
        "stored_bytes": backup.stored_bytes, "proven_at": entry.proven_at, "problem": entry.problem,
    }  # fmt: skip


def _entries_table(entries: list[CatalogueEntry], now: datetime) -> Any:
    heads = ["store", "source", "backup", "state", "size", "stored", "age", "rests on", "problem"]
    rows = [
        (
            entry.backup.store, entry.backup.source, entry.backup.backup_id, entry.state,
            out.bytes_shown(entry.backup.size_bytes), out.bytes_shown(entry.backup.stored_bytes),
            _age(now - entry.backup.ended_at), entry.backup.parent_id or "", entry.problem,
        )
        for entry in entries
    ]  # fmt: skip
    return out.table_of("backups", heads, rows)


def _due_table(due: list[Due]) -> Any:
    rows = [(one.store, one.kind, one.next_at, "MISSING" if one.is_overdue else "") for one in due]
    return out.table_of("next", ["store", "kind", "at", "the last one"], rows)


def _restored_table(store: StoreName, done: str) -> Any:
    return out.table_of("restored", ["store", "what"], [(store, done)])


def _age(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    return f"{hours / 24:.1f} d" if hours >= 48 else f"{hours:.1f} h"
