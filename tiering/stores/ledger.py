"""The ledger: the PostgreSQL tables that say which copy of which unit counts, and how far each move is.

Every change of state is one `UPDATE … WHERE state = previous AND lease_epoch = mine`: run twice, the second
changes nothing and says so. Functions that take a connection join the caller's transaction.
Does not: touch rows of a dataset; decide anything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Move, Plan, State, StorageClass, Tier, Transition, Unit
from tiering.stores.postgres import Postgres, execute, fetch, fetch_one, mapped
from tiering.stores.records import (
    OPEN_STATES,
    HoldRecord,
    MoveRecord,
    TrashRecord,
    UnitRecord,
    fingerprint_from_json,
    fingerprint_to_json,
)

LEASE_SPACE = 0x7 << 28
"""First half of our advisory lock keys, so that an application's own locks do not meet them."""

_MOVE_COLUMNS = """move_id, dataset, begin_at, end_at, generation, transition, state, source, target, details,
    row_count, bytes_before, bytes_after, checkpoints_passed, stage_seconds, problem, forced_because, lease_epoch"""


def _move(row: Sequence[Any]) -> MoveRecord:
    unit = Unit(row[1], row[2], row[3], row[4])
    return MoveRecord(row[0], unit, Transition(row[5]), State(row[6]), *row[7:])


class Ledger:
    """The ledger in the warm database. Safe to share between threads."""

    def __init__(self, database: Postgres) -> None:
        self.database = database

    # -- moves ---------------------------------------------------------------------------------------------

    def open_moves(self, plan: Plan, policy_version: str) -> list[int]:
        """Record a plan's moves as PLANNED and return the ids of all its units' open moves, in plan order.

        May be called twice, and by two schedulers at once: a unit has at most one open move, and whoever
        comes second gets the first one's id. A move that another scheduler has carried through since this plan
        was made is not begun again: its id is returned, and running it changes nothing.
        """
        ids = []
        with self.database.transaction("record moves of", plan.dataset) as connection:
            for move in plan.moves:
                ids.append(self._open_move(connection, move, policy_version))
        return ids

    def _open_move(self, connection: Connection, move: Move, policy_version: str) -> int:
        unit = move.unit
        inserted = fetch_one(
            connection,
            """INSERT INTO tiering.move (dataset, begin_at, end_at, generation, transition, state, row_count,
                                         bytes_before, policy_version)
               VALUES (%s, %s, %s, %s, %s, 'PLANNED', %s, %s, %s)
               ON CONFLICT (dataset, begin_at)
               WHERE state IN ('PLANNED', 'SEALED', 'COPIED', 'VERIFIED', 'QUARANTINED') DO NOTHING
               RETURNING move_id""",
            (
                unit.dataset,
                unit.begin,
                unit.end,
                unit.generation,
                move.transition,
                move.row_count,
                move.size_bytes,
                policy_version,
            ),
        )
        # Only now, in a snapshot that is newer than the insert: a move of this unit that was open until a moment
        # ago, and made the insert possible by its commit, has then changed the unit as well.
        if inserted and not _fits(move, next(iter(units(connection, unit.dataset, unit.begin)), None)):
            execute(connection, "DELETE FROM tiering.move WHERE move_id = %s", inserted)
        found = fetch_one(
            connection,
            """SELECT move_id FROM tiering.move WHERE dataset = %s AND begin_at = %s AND state = ANY(%s)
                ORDER BY move_id DESC LIMIT 1""",
            (unit.dataset, unit.begin, [str(state) for state in OPEN_STATES]),
        )
        if found is None:  # the other scheduler has committed it since we planned: look at the last one
            found = fetch_one(
                connection,
                "SELECT max(move_id) FROM tiering.move WHERE dataset = %s AND begin_at = %s",
                (unit.dataset, unit.begin),
            )
        assert found is not None
        return int(found[0])

    def move(self, move_id: int) -> MoveRecord:
        """Read one move; NotFound if there is none."""
        with self.database.transaction("read move", str(move_id)) as connection:
            row = fetch_one(connection, f"SELECT {_MOVE_COLUMNS} FROM tiering.move WHERE move_id = %s", (move_id,))
        if row is None:
            raise errors.NotFound("read move", str(move_id), "no such move", "List moves with `tiering explain`.")
        return _move(row)

    def moves(self, dataset: str | None, states: Sequence[State], begin: datetime | None = None) -> list[MoveRecord]:
        """List a dataset's (None: every dataset's) moves in the given states, oldest unit first; or one unit's."""
        with self.database.transaction("list moves of", dataset or "all datasets") as connection:
            rows = fetch(
                connection,
                f"""SELECT {_MOVE_COLUMNS} FROM tiering.move
                    WHERE (%(dataset)s::text IS NULL OR dataset = %(dataset)s) AND state = ANY(%(states)s)
                      AND (%(begin)s::timestamptz IS NULL OR begin_at = %(begin)s)
                    ORDER BY begin_at, move_id""",
                {"dataset": dataset, "states": [str(state) for state in states], "begin": begin},
            )
        return [_move(row) for row in rows]

    @contextlib.contextmanager
    def lease(self, move_id: int, owner: str) -> Iterator[MoveRecord]:
        """Hold a move while one step runs: nobody else can, and nobody who lost it can commit.

        The lock dies with this process's connection, so a killed run blocks nobody; the epoch is the
        fencing token, so a run that only *seems* dead cannot advance the move after somebody took over.

        Raises:
            LeaseHeld: another run works on it now.
        """
        connection = self.database.connect(f"lease move {move_id}")
        try:
            with mapped("lease move", str(move_id)):
                connection.autocommit = True
                got = fetch_one(connection, "SELECT pg_try_advisory_lock(%s, %s)", (LEASE_SPACE, move_id))
                if not got or not got[0]:
                    holder = fetch_one(connection, "SELECT lease_owner FROM tiering.move WHERE move_id=%s", (move_id,))
                    raise errors.LeaseHeld(
                        "lease move", str(move_id), f"held by {holder[0] if holder else 'another run'}"
                    )
                row = fetch_one(
                    connection,
                    f"""UPDATE tiering.move SET lease_epoch = lease_epoch + 1, lease_owner = %s
                        WHERE move_id = %s RETURNING {_MOVE_COLUMNS}""",
                    (owner, move_id),
                )
            if row is None:
                raise errors.NotFound("lease move", str(move_id), "no such move")
            yield _move(row)
        finally:
            with contextlib.suppress(psycopg2.Error):
                # Asked for, not left to the closing: the server notices that in its own time, and our own next
                # step would find the lease held.
                execute(connection, "SELECT pg_advisory_unlock_all()")
                connection.close()

    def advance(
        self,
        connection: Connection,
        record: MoveRecord,
        state: State,
        *,
        details: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> MoveRecord:
        """Set the move to `state` in the caller's transaction, if it is still ours and where we left it.

        Args:
            connection: the transaction that also holds the step's effects.
            record: as leased or last advanced.
            state: the next state (or the same, to record a target before writing it).
            details: merged into the move's details.
            columns: source, target, row_count, bytes_before, bytes_after, checkpoints_passed, problem.

        Raises:
            LeaseHeld: somebody else took the lease or advanced the move.
        """
        allowed = {"source", "target", "row_count", "bytes_before", "bytes_after", "checkpoints_passed", "problem"}
        assert columns.keys() <= allowed, f"not columns of a move: {columns.keys() - allowed}"
        sets = "".join(f", {name} = %({name})s" for name in columns)
        row = fetch_one(
            connection,
            f"""UPDATE tiering.move SET state = %(state)s, changed_at = clock_timestamp(),
                       details = details || %(details)s::jsonb {sets}
                WHERE move_id = %(move_id)s AND state = %(previous)s AND lease_epoch = %(epoch)s
                RETURNING {_MOVE_COLUMNS}""",
            {
                "state": state,
                "details": json.dumps(dict(details or {})),
                "move_id": record.move_id,
                "previous": record.state,
                "epoch": record.lease_epoch,
                **columns,
            },
        )
        if row is None:
            raise errors.LeaseHeld(
                "advance", str(record), "the lease was lost to another run", "Nothing was changed; run it again."
            )
        return _move(row)

    def demand_lease(self, connection: Connection, record: MoveRecord) -> None:
        """Let nobody take the move over until the caller's transaction ends.

        For effects under a name that the next run uses too: a run that lost its lease without noticing must not
        make a copy again that the other one has verified already.

        Raises:
            LeaseHeld: somebody took it over before.
        """
        statement = "SELECT 1 FROM tiering.move WHERE move_id = %s AND lease_epoch = %s FOR SHARE"
        if fetch_one(connection, statement, (record.move_id, record.lease_epoch)) is None:
            raise errors.LeaseHeld(
                "hold lease", str(record), "the lease was lost to another run", "Nothing was changed; run it again."
            )

    def advance_alone(self, record: MoveRecord, state: State, **kwargs: Any) -> MoveRecord:
        """`advance` in a transaction of its own."""
        with self.database.transaction("advance", str(record)) as connection:
            return self.advance(connection, record, state, **kwargs)

    def note_seconds(self, record: MoveRecord, stage: str, seconds: float) -> None:
        """Record how long a stage took; for reports only, so it needs no lease."""
        with self.database.transaction("note", str(record)) as connection:
            execute(
                connection,
                "UPDATE tiering.move SET stage_seconds = stage_seconds || %s::jsonb WHERE move_id = %s",
                (json.dumps({stage: round(seconds, 4)}), record.move_id),
            )

    def release(self, unit_name: str, dataset: str, begin: datetime, actor: str, force_reason: str) -> MoveRecord:
        """Send a quarantined unit's move back to be tried again: its checkpoint, or its copy made anew.

        A move that stands at COPIED or VERIFIED and cannot be finished is sent back as well.

        Args:
            unit_name: for messages.
            dataset: the unit's dataset.
            begin: the unit's begin.
            actor: who asks.
            force_reason: why the failing checkpoint may be ignored; empty to try it again.

        Raises:
            NotFound: the unit is neither quarantined nor stuck behind its copy.
        """
        with self.database.transaction("release", unit_name) as connection:
            row = fetch_one(
                connection,
                f"""UPDATE tiering.move SET state = coalesce(details->>'quarantined_at', 'SEALED'), problem = '',
                           forced_because = %s, lease_epoch = lease_epoch + 1, changed_at = clock_timestamp()
                    WHERE dataset = %s AND begin_at = %s AND state IN ('QUARANTINED', 'COPIED', 'VERIFIED')
                    RETURNING {_MOVE_COLUMNS}""",
                (force_reason, dataset, begin),
            )
            if row is None:
                raise errors.NotFound("release", unit_name, "not quarantined", "See `tiering explain` for its state.")
            audit(connection, actor, "release", dataset, begin, {"forced_because": force_reason})
        return _move(row)

    # -- units ---------------------------------------------------------------------------------------------

    def units(self, dataset: str) -> list[UnitRecord]:
        """List every unit of a dataset that has left the hot tier, oldest first."""
        with self.database.transaction("list units of", dataset) as connection:
            return units(connection, dataset)

    def unit(self, dataset: str, begin: datetime) -> UnitRecord | None:
        """Read one unit, None while it is hot."""
        with self.database.transaction("read unit of", dataset) as connection:
            found = units(connection, dataset, begin)
        return found[0] if found else None

    def put_unit(self, connection: Connection, record: UnitRecord) -> None:
        """Make `record` the truth about its unit, in the caller's transaction."""
        execute(
            connection,
            """INSERT INTO tiering.unit (dataset, begin_at, end_at, generation, tier, location, is_compressed,
                                         row_count, size_bytes, fingerprint, sha256, storage_class)
               VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
               ON CONFLICT (dataset, begin_at) DO UPDATE SET
                   generation = excluded.generation, tier = excluded.tier, location = excluded.location,
                   is_compressed = excluded.is_compressed, row_count = excluded.row_count,
                   size_bytes = excluded.size_bytes, fingerprint = excluded.fingerprint,
                   sha256 = excluded.sha256, storage_class = excluded.storage_class,
                   changed_at = clock_timestamp()""",
            (
                record.unit.dataset,
                record.unit.begin,
                record.unit.end,
                record.unit.generation,
                record.tier,
                record.location,
                record.is_compressed,
                record.row_count,
                record.size_bytes,
                json.dumps(fingerprint_to_json(record.fingerprint)) if record.fingerprint else None,
                record.sha256 or None,
                record.storage_class,
            ),
        )

    def knows(self, dataset: str) -> bool:
        """Tell whether any unit or move of a dataset was ever recorded."""
        with self.database.transaction("look for", dataset) as connection:
            row = fetch_one(connection, "SELECT EXISTS (SELECT 1 FROM tiering.move WHERE dataset = %s)", (dataset,))
        return bool(row and row[0])

    # -- trash, holds, audit -------------------------------------------------------------------------------

    def put_trash(
        self, connection: Connection, record: MoveRecord, store: str, location: str, size_bytes: int, at: datetime
    ) -> None:
        """Note that a copy is superseded; it is destroyed by the sweep after the undo window. Idempotent."""
        execute(
            connection,
            """INSERT INTO tiering.trash (move_id, dataset, begin_at, store, location, size_bytes, trashed_at)
               VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (store, location) DO NOTHING""",
            (record.move_id, record.unit.dataset, record.unit.begin, store, location, size_bytes, at),
        )

    def trash(self, dataset: str | None = None, before: datetime | None = None) -> list[TrashRecord]:
        """List superseded copies not yet destroyed, those trashed before an instant if one is given."""
        with self.database.transaction("list trash of", dataset or "all datasets") as connection:
            rows = fetch(
                connection,
                """SELECT trash_id, move_id, dataset, begin_at, store, location, size_bytes, trashed_at
                   FROM tiering.trash WHERE reclaimed_at IS NULL
                     AND (%(dataset)s::text IS NULL OR dataset = %(dataset)s)
                     AND (%(before)s::timestamptz IS NULL OR trashed_at < %(before)s) ORDER BY trash_id""",
                {"dataset": dataset, "before": before},
            )
        return [TrashRecord(*row) for row in rows]

    def place_hold(self, dataset: str, begin: datetime | None, reason: str, actor: str) -> None:
        """Put a legal hold on a dataset (begin None) or on one unit. Again with a new reason: replaces it."""
        with self.database.transaction("hold", dataset) as connection:
            execute(
                connection,
                """INSERT INTO tiering.hold (dataset, begin_at, reason, placed_by) VALUES (%s, %s, %s, %s)
                   ON CONFLICT (dataset, coalesce(begin_at, '-infinity')) WHERE released_at IS NULL
                   DO UPDATE SET reason = excluded.reason, placed_by = excluded.placed_by""",
                (dataset, begin, reason, actor),
            )
            audit(connection, actor, "hold", dataset, begin, {"reason": reason})

    def lift_hold(self, dataset: str, begin: datetime | None, reason: str, actor: str) -> None:
        """Lift a hold; NotFound if there is none."""
        with self.database.transaction("lift hold on", dataset) as connection:
            lifted = execute(
                connection,
                """UPDATE tiering.hold SET released_at = clock_timestamp() WHERE dataset = %s
                   AND begin_at IS NOT DISTINCT FROM %s AND released_at IS NULL""",
                (dataset, begin),
            )
            if not lifted:
                raise errors.NotFound("lift hold on", dataset, "no such hold", "List holds: `tiering hold list`.")
            audit(connection, actor, "lift-hold", dataset, begin, {"reason": reason})

    def holds(self, dataset: str | None = None) -> list[HoldRecord]:
        """List the holds in force."""
        with self.database.transaction("list holds of", dataset or "all datasets") as connection:
            rows = fetch(
                connection,
                """SELECT dataset, begin_at, reason, placed_by FROM tiering.hold
                   WHERE released_at IS NULL AND (%(dataset)s::text IS NULL OR dataset = %(dataset)s)
                   ORDER BY dataset, begin_at NULLS FIRST""",
                {"dataset": dataset},
            )
        return [HoldRecord(*row) for row in rows]


def _fits(move: Move, unit: UnitRecord | None) -> bool:
    """Tell whether a planned move still starts from where its unit is (None: hot)."""
    if move.transition is Transition.HOT_TO_WARM:
        return unit is None
    if unit is None:
        # Files: a unit is recorded once its objects have left STANDARD.
        return move.transition in (Transition.ARCHIVE, Transition.EXPIRE)
    is_next = unit.unit.generation == move.unit.generation - 1
    is_same = unit.unit.generation == move.unit.generation
    if move.transition is Transition.MERGE:
        return is_next and unit.tier is not Tier.EXPIRED
    if move.transition is Transition.EXPIRE:
        return is_next if unit.tier is Tier.EXPIRED else is_same
    if move.transition is Transition.ARCHIVE:
        return is_same and unit.tier is not Tier.EXPIRED
    return is_same and unit.tier is Tier.WARM and not (move.transition is Transition.COMPRESS and unit.is_compressed)


def units(connection: Connection, dataset: str, begin: datetime | None = None) -> list[UnitRecord]:
    """Read units of a dataset inside the caller's snapshot, oldest first."""
    rows = fetch(
        connection,
        """SELECT begin_at, end_at, generation, tier, location, is_compressed, row_count, size_bytes, fingerprint,
                  coalesce(sha256, ''), storage_class
           FROM tiering.unit WHERE dataset = %(dataset)s
             AND (%(begin)s::timestamptz IS NULL OR begin_at = %(begin)s) ORDER BY begin_at""",
        {"dataset": dataset, "begin": begin},
    )
    return [
        UnitRecord(
            unit=Unit(dataset, row[0], row[1], row[2]),
            tier=Tier(row[3]),
            location=row[4],
            is_compressed=row[5],
            row_count=row[6],
            size_bytes=row[7],
            fingerprint=fingerprint_from_json(row[8]),
            sha256=row[9],
            storage_class=StorageClass(row[10]),
        )
        for row in rows
    ]


def held(connection: Connection, unit: Unit) -> str:
    """Return the reason of the hold on a unit, empty if none; locks the hold table's answer into the transaction.

    Why SHARE: a hold placed while an expiry commits must either stop it or come after it.
    """
    execute(connection, "LOCK TABLE tiering.hold IN SHARE MODE")
    row = fetch_one(
        connection,
        """SELECT reason FROM tiering.hold WHERE dataset = %s AND (begin_at IS NULL OR begin_at = %s)
           AND released_at IS NULL LIMIT 1""",
        (unit.dataset, unit.begin),
    )
    return str(row[0]) if row else ""


def audit(
    connection: Connection, actor: str, action: str, dataset: str, begin: datetime | None, details: Mapping[str, Any]
) -> None:
    """Append one row to the audit trail, in the caller's transaction."""
    execute(
        connection,
        "INSERT INTO tiering.audit (actor, action, dataset, begin_at, details) VALUES (%s, %s, %s, %s, %s)",
        (actor, action, dataset, begin, json.dumps(dict(details), default=str)),
    )
