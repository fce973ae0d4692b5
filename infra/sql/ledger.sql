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
            ADD CONSTRAINT trash_store_check CHECK (store IN ('hot', 'warm', 'lake', 'documents', 'files'));
    END IF;
    IF EXISTS (SELECT FROM pg_constraint WHERE conname = 'trash_store_check'
               AND conrelid = to_regclass('tiering.trash') AND pg_get_constraintdef(oid) NOT LIKE '%files%') THEN
        ALTER TABLE tiering.trash DROP CONSTRAINT trash_store_check,
            ADD CONSTRAINT trash_store_check CHECK (store IN ('hot', 'warm', 'lake', 'documents', 'files'));
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
    store        text        NOT NULL CHECK (store IN ('hot', 'warm', 'lake', 'documents', 'files')),
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

-- Documents in a cold unit's file that went on in another unit, under another time: readers leave them out, and the
-- unit's next merge does.
CREATE TABLE IF NOT EXISTS tiering.superseded (
    dataset  text        NOT NULL,
    begin_at timestamptz NOT NULL,
    end_at   timestamptz NOT NULL,
    id       bytea       NOT NULL,
    PRIMARY KEY (dataset, begin_at, id)
);

-- Joined lake files: each stands in the Iceberg table for the objects of several units, which stay the ones that count.
CREATE TABLE IF NOT EXISTS tiering.joined (
    location   text        PRIMARY KEY,
    dataset    text        NOT NULL,
    begin_at   timestamptz NOT NULL,
    end_at     timestamptz NOT NULL,
    row_count  bigint      NOT NULL,
    size_bytes bigint      NOT NULL,
    sha256     text        NOT NULL,
    parts      text[]      NOT NULL,                  -- locations of the units' own objects
    made_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS joined_dataset ON tiering.joined (dataset, begin_at);

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

-- Field ids of the lake, given once for life. `source` is the identity of the hot table whose attnums these are.
CREATE TABLE IF NOT EXISTS tiering.lake_column (
    dataset    text        NOT NULL,
    field_id   integer     NOT NULL CHECK (field_id BETWEEN 1 AND 999),
    name       text        NOT NULL,
    pg_type    text        NOT NULL,
    attnum     integer     NOT NULL,
    source     text        NOT NULL,
    is_live    boolean     NOT NULL DEFAULT true,     -- false: dropped in the hot table, its values are still stored
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (dataset, field_id),
    UNIQUE (dataset, name) DEFERRABLE INITIALLY DEFERRED
);

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
    RAISE EXCEPTION '%.% is append-only', TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE OR REPLACE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tiering.audit
    FOR EACH STATEMENT EXECUTE FUNCTION tiering.refuse_audit_change();

-- The chain: each link's hash covers the link before and a row of the audit trail, so that a row changed, taken out
-- or put in shows in every link that follows. stores/audit.py reads it, plan/audit.py computes it again.
CREATE OR REPLACE FUNCTION tiering.audit_content(audit tiering.audit) RETURNS text LANGUAGE sql STABLE AS $$
    -- Instants as bytes: their text depends on who asks. jsonb has one text for one value.
    SELECT jsonb_build_object('audit_id', audit.audit_id, 'at', encode(timestamptz_send(audit.at), 'hex'),
        'actor', audit.actor, 'action', audit.action, 'dataset', audit.dataset,
        'begin_at', encode(timestamptz_send(audit.begin_at), 'hex'), 'details', audit.details)::text
$$;

CREATE OR REPLACE FUNCTION tiering.link_audit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last record;
BEGIN
    -- Runs as a commit's last act (deferred), and nothing is waited for behind this lock: it cannot be half of a
    -- deadlock, and moves that commit at once wait for each other only here, for as long as one commit takes.
    PERFORM pg_advisory_xact_lock(hashtextextended('tiering.audit_chain', 0));
    SELECT position, hash INTO last FROM tiering.audit_chain ORDER BY position DESC LIMIT 1;
    INSERT INTO tiering.audit_chain (position, audit_id, hash)
    VALUES (coalesce(last.position, 0) + 1, NEW.audit_id,
            sha256(coalesce(last.hash, ''::bytea) || convert_to(tiering.audit_content(NEW), 'UTF8')));
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION tiering.refuse_audit_link() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() < 2 THEN
        RAISE EXCEPTION 'tiering.audit_chain is written by its trigger' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;

-- Once, with the rows that were there before there was a chain. Concurrent writers wait for the trigger's lock.
DO $$
DECLARE
    old tiering.audit;
    place bigint := 0;
    last bytea := '';
BEGIN
    IF to_regclass('tiering.audit_chain') IS NOT NULL THEN
        RETURN;
    END IF;
    CREATE TABLE tiering.audit_chain (
        position bigint PRIMARY KEY,
        audit_id bigint NOT NULL UNIQUE,
        hash     bytea  NOT NULL
    );
    LOCK TABLE tiering.audit IN SHARE ROW EXCLUSIVE MODE;
    FOR old IN SELECT * FROM tiering.audit ORDER BY audit_id LOOP
        place := place + 1;
        last := sha256(last || convert_to(tiering.audit_content(old), 'UTF8'));
        INSERT INTO tiering.audit_chain VALUES (place, old.audit_id, last);
    END LOOP;
    CREATE CONSTRAINT TRIGGER audit_is_linked AFTER INSERT ON tiering.audit
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tiering.link_audit();
    CREATE TRIGGER audit_chain_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tiering.audit_chain
        FOR EACH STATEMENT EXECUTE FUNCTION tiering.refuse_audit_change();
    CREATE TRIGGER audit_chain_is_written_by_trigger BEFORE INSERT ON tiering.audit_chain
        FOR EACH STATEMENT EXECUTE FUNCTION tiering.refuse_audit_link();
END $$;

-- Erasures of persons: who asked, why, how far. The person is known by a keyed hash alone (ops/erase.py).
CREATE TABLE IF NOT EXISTS tiering.erasure (
    erasure_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    salt         bytea       NOT NULL,
    subject_hash text        NOT NULL,
    reason       text        NOT NULL CHECK (reason <> ''),
    asked_by     text        NOT NULL,
    state        text        NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'DONE')),
    certificate  jsonb,
    opened_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at    timestamptz
);
CREATE TABLE IF NOT EXISTS tiering.erasure_place (
    erasure_id bigint      NOT NULL REFERENCES tiering.erasure,
    place      text        NOT NULL,               -- schema.table, s3://bucket/key, collection or kind of key
    store      text        NOT NULL,
    dataset    text        NOT NULL DEFAULT '',
    begin_at   timestamptz,
    row_count  bigint      NOT NULL DEFAULT 0,     -- of the person, when found
    state      text        NOT NULL DEFAULT 'FOUND' CHECK (state IN ('FOUND', 'ERASED', 'KEPT')),
    details    jsonb       NOT NULL DEFAULT '{}',  -- hashes before and after; why kept, until when
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (erasure_id, place)
);

-- A mirror of the catalogue of backups, to be asked in SQL. The bucket is the truth (ops/catalogue.py): this can be
-- dropped, and is written anew by every backup, check and retention.
CREATE TABLE IF NOT EXISTS tiering.backup (
    backup_id    text        PRIMARY KEY,
    store        text        NOT NULL,
    source       text        NOT NULL,
    kind         text        NOT NULL,
    parent_id    text,
    incarnation  text        NOT NULL,
    began_at     timestamptz NOT NULL,
    ended_at     timestamptz NOT NULL,
    begins       text        NOT NULL,               -- log positions, in the store's notation
    ends         text        NOT NULL,
    state        text        NOT NULL CHECK (state IN ('UPLOADED', 'VERIFIED', 'PROVEN', 'FAILED')),
    proven_at    timestamptz,
    problem      text        NOT NULL DEFAULT '',
    objects      integer     NOT NULL,
    size_bytes   bigint      NOT NULL,
    stored_bytes bigint      NOT NULL,
    facts        jsonb       NOT NULL DEFAULT '{}',
    mirrored_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS backup_store ON tiering.backup (store, source, began_at);

-- What the caches of all access clients are worth. A writer that cannot reach the cache begins a new epoch instead:
-- within a second every client knows, and takes nothing from its cache that was stored before (tiering/stores/trust.py).
CREATE TABLE IF NOT EXISTS tiering.access_epoch (
    only_row       boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch          bigint      NOT NULL,
    distrust_until timestamptz NOT NULL
);
INSERT INTO tiering.access_epoch VALUES (true, 1, '-infinity') ON CONFLICT DO NOTHING;

-- Access clients remember where units are; they are told when one moves, as its commit becomes visible.
CREATE OR REPLACE FUNCTION tiering.tell_of_units() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('tiering_units', '');
    RETURN NULL;
END $$;
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'units_are_told' AND tgrelid = 'tiering.unit'::regclass) THEN
        CREATE TRIGGER units_are_told AFTER INSERT OR UPDATE OR DELETE ON tiering.unit
            FOR EACH STATEMENT EXECUTE FUNCTION tiering.tell_of_units();
    END IF;
END $$;
