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
    storage_class text        NOT NULL DEFAULT 'STANDARD',
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

-- Ledgers made before there were storage classes and documents. Asked first: ALTER TABLE would stop every reader.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM information_schema.columns
                   WHERE table_schema = 'tiering' AND table_name = 'unit' AND column_name = 'storage_class') THEN
        ALTER TABLE tiering.unit ADD COLUMN storage_class text NOT NULL DEFAULT 'STANDARD';
        ALTER TABLE tiering.trash DROP CONSTRAINT IF EXISTS trash_store_check,
            ADD CONSTRAINT trash_store_check CHECK (store IN ('hot', 'warm', 'lake', 'documents'));
    END IF;
END $$;

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
    store        text        NOT NULL CHECK (store IN ('hot', 'warm', 'lake', 'documents')),
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

-- What placement decided: a transition of a unit (begin_at null: of the dataset) comes earlier or later.
CREATE TABLE IF NOT EXISTS tiering.pin (
    dataset       text        NOT NULL,
    begin_at      timestamptz,
    symbol        text        NOT NULL DEFAULT '',
    transition    text        NOT NULL,
    shift_seconds bigint      NOT NULL,               -- later when positive, within the policy's shift_max
    terms         jsonb       NOT NULL,
    decided_at    timestamptz NOT NULL,
    until_at      timestamptz NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS pin_one
    ON tiering.pin (dataset, coalesce(begin_at, '-infinity'), symbol, transition);

-- Read copies of cold units in the warm tier: never authoritative, gone after until_at.
CREATE TABLE IF NOT EXISTS tiering.rehydrated (
    dataset    text        NOT NULL,
    begin_at   timestamptz NOT NULL,
    end_at     timestamptz NOT NULL,
    generation integer     NOT NULL,
    location   text        NOT NULL,
    row_count  bigint      NOT NULL,
    size_bytes bigint      NOT NULL,
    made_at    timestamptz NOT NULL,
    until_at   timestamptz NOT NULL,
    PRIMARY KEY (dataset, begin_at)
);

-- Objects of files datasets and of the lake that left STANDARD: where each is, and its restore if one was asked for.
CREATE TABLE IF NOT EXISTS tiering.object (
    bucket        text        NOT NULL,
    object_key    text        NOT NULL,
    dataset       text        NOT NULL,
    begin_at      timestamptz NOT NULL,               -- of its unit
    etag          text        NOT NULL,
    size_bytes    bigint      NOT NULL,
    created_at    timestamptz NOT NULL,               -- its age counts from here: a change of class renews S3's own date
    storage_class text        NOT NULL,
    restore_state text        NOT NULL DEFAULT '' CHECK (restore_state IN ('', 'REQUESTED', 'AVAILABLE')),
    restore_asked_at timestamptz,
    restore_ready_at timestamptz,                     -- expected while REQUESTED
    restore_until    timestamptz,
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (bucket, object_key)
);
CREATE INDEX IF NOT EXISTS object_unit ON tiering.object (dataset, begin_at);

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
