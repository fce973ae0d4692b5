-- The ledger: which copy of which unit counts, what is being moved, what waits to be destroyed.
-- Lives in the warm database, beside the warm tables and the Iceberg catalog, so that one transaction
-- can change all three. Every statement may be run again.
CREATE SCHEMA IF NOT EXISTS tiering;

CREATE TABLE IF NOT EXISTS tiering.unit (
    dataset       text        NOT NULL,
    begin_at      timestamptz NOT NULL,
    end_at        timestamptz NOT NULL,
    generation    integer     NOT NULL CHECK (generation >= 1),
    tier          text        NOT NULL CHECK (tier IN ('warm', 'cold', 'expired')),
    location      text        NOT NULL,               -- schema.table or s3://bucket/key
    is_compressed boolean     NOT NULL DEFAULT false,
    row_count     bigint      NOT NULL,
    size_bytes    bigint      NOT NULL,
    fingerprint   jsonb,                              -- of the cold copy; null while nothing was read
    sha256        text,                               -- of the cold object
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (dataset, begin_at),
    CHECK (begin_at < end_at)
);

CREATE TABLE IF NOT EXISTS tiering.move (
    move_id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dataset            text        NOT NULL,
    begin_at           timestamptz NOT NULL,
    end_at             timestamptz NOT NULL,
    generation         integer     NOT NULL,
    transition         text        NOT NULL,
    state              text        NOT NULL,
    source             text        NOT NULL DEFAULT '',
    target             text        NOT NULL DEFAULT '',  -- recorded before the target is written
    details            jsonb       NOT NULL DEFAULT '{}',
    row_count          bigint      NOT NULL DEFAULT 0,
    bytes_before       bigint      NOT NULL DEFAULT 0,
    bytes_after        bigint      NOT NULL DEFAULT 0,
    checkpoints_passed integer     NOT NULL DEFAULT 0,
    stage_seconds      jsonb       NOT NULL DEFAULT '{}',
    problem            text        NOT NULL DEFAULT '',
    forced_because     text        NOT NULL DEFAULT '',
    lease_owner        text        NOT NULL DEFAULT '',
    lease_epoch        bigint      NOT NULL DEFAULT 0,
    policy_version     text        NOT NULL DEFAULT '',
    planned_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at         timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- At most one open move per unit: the second scheduler meets this index, not the data.
CREATE UNIQUE INDEX IF NOT EXISTS move_open ON tiering.move (dataset, begin_at)
    WHERE state IN ('PLANNED', 'SEALED', 'COPIED', 'VERIFIED', 'QUARANTINED');
CREATE INDEX IF NOT EXISTS move_unit ON tiering.move (dataset, begin_at, move_id);
CREATE INDEX IF NOT EXISTS move_committed ON tiering.move (dataset, move_id) WHERE state = 'COMMITTED';

-- Superseded copies inside their undo window. Only ops/sweep.py destroys what stands here.
CREATE TABLE IF NOT EXISTS tiering.trash (
    trash_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    move_id      bigint      NOT NULL,
    dataset      text        NOT NULL,
    begin_at     timestamptz NOT NULL,
    store        text        NOT NULL CHECK (store IN ('hot', 'warm', 'lake')),
    location     text        NOT NULL,
    size_bytes   bigint      NOT NULL DEFAULT 0,
    trashed_at   timestamptz NOT NULL,
    reclaimed_at timestamptz,
    UNIQUE (store, location)
);
CREATE INDEX IF NOT EXISTS trash_waiting ON tiering.trash (trashed_at) WHERE reclaimed_at IS NULL;

CREATE TABLE IF NOT EXISTS tiering.hold (
    hold_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dataset     text        NOT NULL,
    begin_at    timestamptz,                            -- null: the whole dataset
    reason      text        NOT NULL CHECK (reason <> ''),
    placed_by   text        NOT NULL,
    placed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS hold_in_force
    ON tiering.hold (dataset, coalesce(begin_at, '-infinity')) WHERE released_at IS NULL;

CREATE TABLE IF NOT EXISTS tiering.audit (
    audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor    text        NOT NULL,
    action   text        NOT NULL,
    dataset  text        NOT NULL,
    begin_at timestamptz,
    details  jsonb       NOT NULL DEFAULT '{}'
);

CREATE OR REPLACE FUNCTION tiering.refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'tiering.audit is append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE OR REPLACE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tiering.audit
    FOR EACH STATEMENT EXECUTE FUNCTION tiering.refuse_audit_change();
