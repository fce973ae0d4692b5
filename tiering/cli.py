"""The `tiering` command: thin. Each sub-command opens the stores, calls one function of `ops/`, shows the result.

Exit codes: 0 done · 1 failed · 2 bad arguments or configuration · 3 checks found differences · 130 interrupted.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiering import cli_output as out
from tiering import errors
from tiering.cli_backups import backup, backups_app, restore, verify
from tiering.cli_compact import compact
from tiering.cli_drill import drill, evidence_app, recover
from tiering.cli_erase import erase
from tiering.cli_heartbeat import heartbeat
from tiering.cli_moves import hold_app, policies_app, release, run, sweep
from tiering.cli_objects import app as objects_app
from tiering.cli_placement import placement
from tiering.cli_plan import explain, plan
from tiering.cli_rehydrate import rehydrate
from tiering.cli_stream import app as stream_app
from tiering.cli_stream import wal_fetch, wal_push
from tiering.cli_stream_mongo import stream_mongodb

# The stores cost a second or two to import, which `--help` and a mistyped option need not wait for:
# hence the imports inside the functions, here and in cli_moves.
if TYPE_CHECKING:
    from tiering.model import Dataset
    from tiering.stores.opening import Stores

app = typer.Typer(
    name="tiering",
    help="Storage tiering: where every unit of data is, why, and where it goes next.\n\n"
    "Exit codes: 0 done, 1 failed, 2 bad arguments, 3 checks found differences. "
    "Settings are TIERING_* variables, also from `.env`; `tiering stack up` writes one.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Class = Annotated[str | None, typer.Option("--class", help="Only datasets of this data class.")]
At = Annotated[
    str | None, typer.Option("--at", help="The instant to judge ages at, with time zone: 2026-11-22T08:00Z.  [now]")
]


def instant(text: str | None) -> datetime:
    """Read --at.

    Raises:
        BadParameter: no instant, or one without time zone.
    """
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is no instant; write it like 2026-11-22T08:00Z", param_hint="--at") from exc
    if found.utcoffset() is None:
        raise typer.BadParameter(f"{text!r} has no time zone; write it like {text}Z", param_hint="--at")
    return found.astimezone(UTC)


@contextmanager
def opened() -> Iterator[Stores]:
    """Open the stores that the settings name."""
    from tiering.plan.policies import parse_policies
    from tiering.settings import load_settings
    from tiering.stores.opening import open_stores

    settings = load_settings()
    try:
        text = settings.policies.read_text(encoding="utf-8")
    except OSError as exc:
        hint = "Set TIERING_POLICIES, or run from the project's directory."
        raise errors.PolicyError("read policies", str(settings.policies), exc.strerror or "unreadable", hint) from exc
    with open_stores(settings, parse_policies(text, str(settings.policies))) as stores:
        yield stores


def chosen(stores: Stores, dataset: str | None, data_class: str | None = None) -> list[Dataset]:
    """List the datasets that move and are asked for; NotFound (a bad argument) if there is none."""
    moving = [d for d in stores.policies.datasets if d.state == "moves"]
    found = [d for d in moving if dataset in (None, d.name) and data_class in (None, d.policy.name)]
    if not found:
        known = ", ".join(d.name for d in moving)
        subject = dataset or data_class or "any"
        raise errors.NotFound("find dataset", subject, "no such dataset moves", f"These do: {known}.")
    return found


@app.command()
def install(data_class: Class = None, as_json: Json = False, at: At = None) -> None:
    """Create schemas, ledger, application tables, and what every moving dataset needs around its own. Idempotent.

    Examples: `tiering install` · `tiering install --class market_data` where there is no MongoDB
    """
    import infra.sql
    from tiering.ops import install as ops
    from tiering.stores.postgres import execute

    now = instant(at)
    with opened() as stores:
        ops.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        with stores.hot.transaction("install", "application tables") as connection:
            execute(connection, infra.sql.read_tables())
        rows = []
        for dataset in chosen(stores, None, data_class):
            columns = ops.install_dataset(stores, dataset)
            adopted = ops.prepare_units(stores, dataset, now)
            rows.append({"dataset": dataset.name, "columns": len(columns), "units_adopted": len(adopted)})
    out.emit({"installed": rows}, as_json, out.table_of("installed", list(rows[0]), [r.values() for r in rows]))  # type: ignore[misc]


@app.command()
def seed(
    symbols: Annotated[int, typer.Option(min=1, help="Symbols per day; users are as many.")] = 20,
    days: Annotated[int, typer.Option(min=1, help="Days, or units, per age range (hot, warm, cold, expired).")] = 5,
    rows: Annotated[int | None, typer.Option(min=1, help="At least so many minute bars; instead of --days.")] = None,
    number: Annotated[int, typer.Option("--seed", help="The same seed makes the same rows.")] = 1,
    data_class: Class = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Make deterministic history in the age ranges of all tiers. Units that have rows are left alone.

    Examples: `tiering seed` · `tiering seed --symbols 500 --rows 2000000 --seed 42`
    """
    from tiering.ops import seed as ops

    now = instant(at)
    with opened() as stores, out.progress("seeding") as advance:
        scale = ops.Scale(symbols, days, rows, number)
        if data_class:
            chosen(stores, None, data_class)
        seeded = ops.seed(stores, now, scale, lambda dataset, count: advance(count, dataset), data_class)
    heads = ["dataset", "units", "units left alone", "rows"]
    table = out.table_of("seeded", heads, [(s.dataset, s.units, s.units_left_alone, s.rows) for s in seeded])
    out.emit({"at": now, "seeded": seeded}, as_json, table)


@app.command()
def load(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV with a header, or Parquet.")],
    dataset: Annotated[str, typer.Option("--dataset", help="Where to.")] = "market_bars",
    constants: Annotated[
        list[str] | None, typer.Option("--set", help="COLUMN=VALUE for a column that the file does not have.")
    ] = None,
    zone: Annotated[str, typer.Option(help="Time zone of times that say none.")] = "UTC",
    on_conflict: Annotated[
        str, typer.Option(help="Another row of a key is in the hot tier: refuse the file, skip the row, or replace.")
    ] = "refuse",
    as_json: Json = False,
) -> None:
    """Load bars, every digit as written, in one transaction. Columns are matched by name.

    Examples: `tiering load bars.csv` · `tiering load aapl.parquet --set market=US --set source=yahoo`
    """
    from tiering.ops import load as ops

    pairs = [text.partition("=") for text in constants or []]
    if bad := [name for name, equals, _ in pairs if not (name and equals)]:
        raise typer.BadParameter(f"{bad[0]!r} is not COLUMN=VALUE", param_hint="--set")
    if on_conflict not in ops.CONFLICTS:
        raise typer.BadParameter(f"one of {', '.join(ops.CONFLICTS)}", param_hint="--on-conflict")
    with opened() as stores, out.progress(f"loading {file.name}") as advance:
        chosen(stores, dataset)
        loaded = ops.load_file(
            stores,
            file,
            dataset,
            constants={name: value for name, _, value in pairs},
            zone=zone,
            on_conflict=on_conflict,
            progress=advance,
        )
    fields = out.plain(loaded)
    out.emit(loaded, as_json, out.table_of("loaded", list(fields), [list(fields.values())]))


@app.command()
def query(
    statement: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT in DuckDB's SQL; `-` reads stdin.")],
    limit: Annotated[int, typer.Option(min=0, help="Rows shown as a table; --json gives all.")] = 50,
    memory: Annotated[str, typer.Option(help="What the engine may use before it spills to disk.")] = "512MB",
    as_json: Json = False,
) -> None:
    """Ask hot, warm and cold together: every dataset is a table of its name, each row in it once.

    Times are UTC. Values that no typed column holds (NaN in a numeric, infinity, year 294276) are NULL; the column
    `_exact`, there when named, has their text.

    Example: `tiering query "SELECT symbol, count(*), max(ts) FROM market_bars WHERE ts >= '2020-01-01' GROUP BY 1"`
    """
    from tiering.ops import query as ops

    text = sys.stdin.read() if statement == "-" else statement
    with opened() as stores, out.progress("reading") as advance:
        answer = ops.query(
            stores, text, now=instant(None), memory_limit=memory, progress=lambda place, count: advance(count, place)
        )
    names = answer.column_names
    if as_json:
        rows = [[column[i].as_py() for column in answer.columns] for i in range(answer.num_rows)]
        out.emit({"columns": names, "rows": rows, "row_count": answer.num_rows}, as_json)
        return
    few = answer.slice(0, limit)
    out.emit(None, False, out.table_of("", names, zip(*(c.to_pylist() for c in few.columns), strict=True)))
    if few.num_rows < answer.num_rows:
        out.note(f"{few.num_rows} of {answer.num_rows} rows shown; --limit shows more, --json all.")


@app.command()
def fsck(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also count all warm rows, and read every byte and row of the lake.")
    ] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Check ledger, PostgreSQL, Iceberg and bucket against each other; exit code 3 when they differ.

    Examples: `tiering fsck` · `tiering fsck --deep --json`
    """
    from tiering.ops import fsck as ops

    now = instant(at)
    with opened() as stores, out.progress("checking") as advance:
        checked = ops.fsck(stores, now, deep=deep, progress=lambda what, done, total: advance(1, what, total))
    rows = [
        {"code": f.code, "subject": f.subject, "finding": f.text, "remedy": f.remedy, "note": f.is_note}
        for f in checked.findings
    ]
    table = out.table_of(
        f"{checked.units} units, {checked.objects} objects, {checked.rows} rows counted or read again",
        ["code", "subject", "finding", "remedy"],
        [list(row.values())[:4] for row in rows] or [("none", "", "the stores agree", "")],
    )
    document = {"clean": checked.is_clean, "units": checked.units, "objects": checked.objects, "rows": checked.rows}
    out.emit(document | {"findings": rows}, as_json, table)
    if not checked.is_clean:
        raise typer.Exit(out.DIFFERENCES)


app.command()(plan)
app.command()(explain)
app.command()(run)
app.command()(release)
app.command()(sweep)
app.command()(placement)
app.command()(rehydrate)
app.command()(compact)
app.command()(erase)
app.command()(backup)
app.command()(verify)
app.command()(restore)
app.command()(drill)
app.command()(recover)
app.command()(heartbeat)
app.add_typer(backups_app, name="backups")
app.add_typer(evidence_app, name="evidence")
app.add_typer(hold_app, name="hold")
app.add_typer(objects_app, name="objects")
app.add_typer(policies_app, name="policies")
stream_app.command("mongodb")(stream_mongodb)
app.add_typer(stream_app, name="stream")
app.command("wal-push")(wal_push)
app.command("wal-fetch")(wal_fetch)
if importlib.util.find_spec("infra"):
    # Installed without the repository, the library has no embedded stack.
    from tiering.cli_stack import app as stack_app

    app.add_typer(stack_app, name="stack")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors end as one line on stderr and an exit code, never as a traceback."""
    out.prepare_logging()
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        code = app(words, standalone_mode=False)
    except errors.TieringError as exc:
        out.say_error(exc, as_json)
        code = out.exit_code(exc)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has left: nobody wants to hear more
        code = out.FAILED
    except (KeyboardInterrupt, typer.Abort):
        out.note("interrupted; what was begun goes on with the next run")
        code = out.INTERRUPTED
    except Exception as exc:
        code = _usage_code(exc, as_json)
    sys.exit(code or 0)


def _usage_code(exc: Exception, as_json: bool) -> int:
    """Show a usage error as typer does; hand anything unknown on."""
    show, code = getattr(exc, "show", None), getattr(exc, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        if as_json:
            out.emit({"error": {"type": type(exc).__name__, "message": str(exc)}}, True)
        return code
    if "interrupt" in str(exc).lower():  # DuckDB's way of saying Ctrl-C
        out.note("interrupted")
        return out.INTERRUPTED
    raise exc


if __name__ == "__main__":
    main()
