"""The nouns, as frozen values. Everything else points here; this module points nowhere.

Does not: read a clock, a file or the environment; know any store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Tier(StrEnum):
    """Where a unit lives: its one authoritative copy."""

    HOT = "hot"
    WARM = "warm"
    COLD = "cold"
    EXPIRED = "expired"


class Form(StrEnum):
    """What a dataset is made of: rows of a PostgreSQL table, MongoDB documents, or objects of a bucket."""

    TABLE = "table"
    DOCUMENTS = "documents"
    FILES = "files"


class Importance(StrEnum):
    """How much it hurts when a dataset is slow to read; a term of its placement score."""

    CRITICAL = "critical"
    IMPORTANT = "important"
    ARCHIVE = "archive"


class StorageClass(StrEnum):
    """S3 storage classes that objects move through, warmest first. Only DEEP_ARCHIVE cannot be read at once."""

    STANDARD = "STANDARD"
    STANDARD_IA = "STANDARD_IA"
    GLACIER_IR = "GLACIER_IR"
    DEEP_ARCHIVE = "DEEP_ARCHIVE"


class Transition(StrEnum):
    """What a move does. `MERGE` joins late rows (a new generation) to a unit that left the hot tier; `ARCHIVE`
    gives the unit's objects the next colder storage class.
    """

    HOT_TO_WARM = "hot-to-warm"
    MERGE = "merge"
    COMPRESS = "compress"
    WARM_TO_COLD = "warm-to-cold"
    ARCHIVE = "archive"
    EXPIRE = "expire"


class State(StrEnum):
    """How far a move is; each step follows only from the one before (DESIGN §4)."""

    PLANNED = "PLANNED"
    SEALED = "SEALED"
    COPIED = "COPIED"
    VERIFIED = "VERIFIED"
    COMMITTED = "COMMITTED"
    RECLAIMED = "RECLAIMED"
    QUARANTINED = "QUARANTINED"


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """The thing that moves: a dataset's rows in `[begin, end)` UTC, one generation of them."""

    dataset: str
    begin: datetime
    end: datetime
    generation: int = 1

    def __str__(self) -> str:
        return f"{self.name}/g{self.generation}"

    @property
    def name(self) -> str:
        """The unit without its generation, as people type it: `market_bars/2024-01-05`."""
        whole_day = self.begin.strftime("%H%M%S") == "000000"
        return f"{self.dataset}/{self.begin.strftime('%Y-%m-%d' if whole_day else '%Y-%m-%dT%H')}"

    @property
    def slug(self) -> str:
        """The unit's time as a suffix for table names and object keys: `20240105` or `20240105t08`."""
        whole_day = self.begin.strftime("%H%M%S") == "000000"
        return self.begin.strftime("%Y%m%d" if whole_day else "%Y%m%dt%H")


@dataclass(frozen=True, slots=True)
class Span:
    """A calendar length: months, days and hours kept apart, because a month is not 30 days."""

    months: int = 0
    days: int = 0
    hours: int = 0

    def __str__(self) -> str:
        parts = (("y", self.months // 12), ("mo", self.months % 12), ("d", self.days), ("h", self.hours))
        return "".join(f"{count}{letter}" for letter, count in parts if count) or "0h"


class Kind(StrEnum):
    """How a PostgreSQL column is carried in the lake; EXACT_TEXT, its text form, brings back every type there is."""

    BOOL = "bool"
    INT2 = "int2"
    INT4 = "int4"
    INT8 = "int8"
    FLOAT4 = "float4"
    FLOAT8 = "float8"
    DECIMAL = "decimal"
    TEXT = "text"
    BYTES = "bytes"
    DATE = "date"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    UUID = "uuid"
    EXACT_TEXT = "exact_text"


@dataclass(frozen=True, slots=True)
class Column:
    """One column as PostgreSQL declares it and as the lake carries it.

    Attributes:
        name: as in PostgreSQL; unique in its table.
        pg_type: `format_type()` output, e.g. "numeric(18,8)", "character varying(32)".
        kind: how the lake carries it.
        precision, scale: of a DECIMAL, else 0.
        field_id: the Iceberg field id: stable for the life of the lake table, 1-based.
        nullable: False when NOT NULL is declared.
    """

    name: str
    pg_type: str
    kind: Kind
    precision: int = 0
    scale: int = 0
    field_id: int = 0
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class LakeColumn:
    """What the ledger remembers of a column: its field id is given once and never again.

    Attributes:
        field_id: for life, through every rename; never that of another column, not even after a drop.
        name: now; of a retired column the last one, changed where a new column took it.
        pg_type: as the warm tier and the lake carry it.
        attnum: its number in the hot table, by which a rename is known.
        is_live: False once the hot table has lost it: warm and cold copies still hold it.
    """

    field_id: int
    name: str
    pg_type: str
    attnum: int
    is_live: bool = True


EXACT_COLUMN = "_exact"
"""Extra text column of every lake table: JSON object of column → PostgreSQL text, for the values of a
row that the typed column cannot hold (numeric NaN and ±infinity, infinite dates, year 294276); the
typed column is then null. NULL in nearly every row."""


@dataclass(frozen=True, slots=True)
class ColumnPrint:
    """An order-free fingerprint: the sum, modulo 2**64, of values' hashes seeded by their row's key: a swap shows."""

    name: str
    value_count: int
    hash_sum: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a unit contains, whatever store holds it and in whatever order."""

    row_count: int
    columns: tuple[ColumnPrint, ...]

    def differences(self, other: Fingerprint) -> list[str]:
        """Name what differs, in words, empty when equal: `rows 10 != 9`, `column close: hash …`."""
        found = []
        if self.row_count != other.row_count:
            found.append(f"rows {self.row_count} != {other.row_count}")
        mine = {column.name: column for column in self.columns}
        theirs = {column.name: column for column in other.columns}
        found += [f"column {name}: only on one side" for name in sorted(mine.keys() ^ theirs.keys())]
        for name in sorted(mine.keys() & theirs.keys()):
            a, b = mine[name], theirs[name]
            if a.value_count != b.value_count:
                found.append(f"column {name}: {a.value_count} values != {b.value_count}")
            elif a.hash_sum != b.hash_sum:
                found.append(f"column {name}: hash {a.hash_sum:016x} != {b.hash_sum:016x}")
        return found


@dataclass(frozen=True, slots=True)
class Policy:
    """A data class's ages. A None stage never happens. Ages count from the row's own time."""

    name: str
    hot_to_warm: Span | None
    warm_to_cold: Span | None
    compression: Span | None
    retention: Span | None


@dataclass(frozen=True, slots=True)
class Field:
    """A declared field of a document: the typed column that the lake and queries have of it.

    Attributes:
        name: of the column.
        path: where it stands in the document, sub-documents joined by dots.
        kind: TEXT, FLOAT8, INT8, BOOL, TIMESTAMPTZ, UUID or EXACT_TEXT (any value, as canonical extended JSON).
    """

    name: str
    path: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Dataset:
    """One table, collection or prefix of a bucket and how it is tiered; overrides are applied to its policy.

    Attributes:
        name: identifier, `[a-z][a-z0-9_]*`.
        policy: ages in force.
        hot, warm: the kind of store that holds it there: "postgresql", "mongodb" or "s3".
        time_column: the column whose value is the row's age.
        key: columns that identify a row; the time column is one of them.
        unit: length of a unit: whole hours, one day, n days, one month or whole years.
        fingerprint: columns compared between copies; empty means every column.
        suite: name of its checkpoint suite (plan/checks.py).
        sort: order of the rows in a lake file; empty means the key.
        state: "moves" for those that move by age; "state" for tables of the present, which never do and which
            backups carry; "declared" for those that are known and left alone.
        fields: of a documents dataset: its typed columns besides `_id` and the time.
        subject: the column or field that names a person, whose rows `tiering erase` finds by it; empty: none.
        lock: its lake objects are under S3 object lock until the end of retention.
        importance: a term of the placement score.
        storage: (storage class, age) in order, of its lake objects or files; empty: they stay STANDARD.
        prefix: of a files dataset: the keys that belong to it.
        wait_for_backup: a unit leaves its store only when a backup of that store holds it.
    """

    name: str
    policy: Policy
    hot: str
    warm: str
    time_column: str
    key: tuple[str, ...]
    unit: Span
    fingerprint: tuple[str, ...] = ()
    suite: str = ""
    sort: tuple[str, ...] = ()
    state: str = "moves"
    fields: tuple[Field, ...] = ()
    subject: str = ""
    lock: bool = False
    importance: Importance = Importance.IMPORTANT
    storage: tuple[tuple[StorageClass, Span], ...] = ()
    prefix: str = ""
    wait_for_backup: bool = False

    @property
    def form(self) -> Form:
        """What the dataset is made of."""
        return {"postgresql": Form.TABLE, "mongodb": Form.DOCUMENTS, "s3": Form.FILES}[self.hot]


@dataclass(frozen=True, slots=True)
class Prices:
    """What the tiers cost, in the currency of the bill, for the estimates of a plan.

    Attributes:
        gib_month: (tier or storage class, price of one GiB for a month).
        put_thousand, get_thousand: of a thousand requests to the object store.
        currency: printed behind sums.
    """

    gib_month: tuple[tuple[str, float], ...] = ()
    put_thousand: float = 0.0
    get_thousand: float = 0.0
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class Placement:
    """How far heat may shift a transition's age: between `1 - shift_max` and `1 + shift_max` of it.

    Attributes:
        shift_max: a share of the age, in [0, 1); 0 turns placement off. Retention is never shifted.
        residency: once decided, a pin stays at least so long.
    """

    shift_max: float = 0.5
    residency: Span = Span(days=1)


@dataclass(frozen=True, slots=True)
class Heat:
    """How often a dataset is read now, in accesses a day, as the decayed counters tell.

    Attributes:
        since: when counting began; None: nothing is known, and the rates below mean nothing.
        dataset: of the whole dataset.
        units, symbols: of those that were read at all, by the unit's begin and by name.
    """

    since: datetime | None = None
    dataset: float = 0.0
    units: Mapping[datetime, float] = field(default_factory=dict)
    symbols: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a placement score: what was seen, which threshold it crossed, and what that counts.

    Attributes:
        name: "heat", "age" or "importance".
        value: what was seen, in words: `250.0/day`.
        threshold: the rule it met: `> 100/day`.
        tier: where this term alone would place it; empty when unknown.
        weight: of the hundred points that all terms share.
        points: +1 hotter, 0, -1 colder.
    """

    name: str
    value: str
    threshold: str
    tier: str
    weight: int
    points: int

    @property
    def contribution(self) -> int:
        """What it adds to the total."""
        return self.weight * self.points

    def __str__(self) -> str:
        return f"{self.name} {self.value} ({self.threshold}): {self.contribution:+d}"


@dataclass(frozen=True, slots=True)
class Pin:
    """A decision of placement: one transition of a unit, or of all units of a dataset, comes earlier or later.

    Attributes:
        begin: of the unit; None: every unit of the dataset that has no pin of its own.
        symbol: empty; a symbol's heat moves no unit alone.
        shift_seconds: later when positive; 0 records the decision to follow the policy.
        terms: of the score that decided it.
        decided_at: when the shift was last changed.
        until: it lapses then, unless placement renews it.
    """

    dataset: str
    begin: datetime | None
    transition: Transition
    shift_seconds: int
    terms: tuple[Term, ...]
    decided_at: datetime
    until: datetime
    symbol: str = ""


@dataclass(frozen=True, slots=True)
class Policies:
    """The whole policy file, already valid: nothing downstream checks it again."""

    classes: tuple[Policy, ...]
    datasets: tuple[Dataset, ...]
    undo_window: Span
    grace: Span
    version: str
    prices: Prices = Prices()
    placement: Placement = Placement()

    def dataset(self, name: str) -> Dataset | None:
        """Find a dataset by name."""
        return next((dataset for dataset in self.datasets if dataset.name == name), None)

    def of_class(self, data_class: str) -> tuple[Dataset, ...]:
        """List the datasets that move in one data class, in file order."""
        return tuple(d for d in self.datasets if d.policy.name == data_class and d.state == "moves")


@dataclass(frozen=True, slots=True)
class Residence:
    """What the ledger knows of a unit now: where its authoritative copy is.

    Attributes:
        unit: with the generation that the copy holds.
        tier: where the copy is.
        location: `schema.table` in PostgreSQL or `s3://bucket/key`.
        is_compressed: the warm copy is packed or in the columnstore.
        row_count, size_bytes: of the copy; an estimate while hot.
        late_count: rows waiting in the hot table's late partition for this unit.
        move_state, move_transition: of its open move, if any.
        quarantine, hold: why its open move is in quarantine, why it is under legal hold; else empty.
        storage_class: of its object, where it is cold or a file.
        lease_owner: the run that works on its open move at this moment, else empty.
        rehydrated_until: while a read copy of a cold unit is in the warm tier.
        overlaps: the partition or unit of another length that its range cuts into, else empty.
        written_at, backed_up_at: when its copy was written (None while hot), and the newest backup of its store begun.
    """

    unit: Unit
    tier: Tier
    location: str
    is_compressed: bool = False
    row_count: int = 0
    size_bytes: int = 0
    late_count: int = 0
    move_state: State | None = None
    move_transition: Transition | None = None
    quarantine: str = ""
    hold: str = ""
    storage_class: StorageClass = StorageClass.STANDARD
    lease_owner: str = ""
    rehydrated_until: datetime | None = None
    overlaps: str = ""
    written_at: datetime | None = None
    backed_up_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a unit is not moved now, for machines (`code`) and people (`text`), and when that changes."""

    code: str
    text: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One transition of one unit, to be carried out."""

    unit: Unit
    transition: Transition
    row_count: int = 0
    size_bytes: int = 0
    due_at: datetime | None = None

    def __str__(self) -> str:
        return f"{self.transition} {self.unit}"


@dataclass(frozen=True, slots=True)
class Stay:
    """A unit that is not moved, with at least one reason."""

    unit: Unit
    tier: Tier
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done at `now`, and why the rest stays. Making one writes nothing."""

    dataset: str
    now: datetime
    reference: datetime | None
    moves: tuple[Move, ...]
    stays: tuple[Stay, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a move did, or how far it came."""

    unit: Unit
    transition: Transition
    state: State
    row_count: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0
    checkpoints_passed: int = 0
    problem: str = ""
    stage_seconds: tuple[tuple[str, float], ...] = field(default=())
