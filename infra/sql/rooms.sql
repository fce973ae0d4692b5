-- Schemas and the write fence that both databases need. Every statement may be run again.
CREATE SCHEMA IF NOT EXISTS hot;
CREATE SCHEMA IF NOT EXISTS warm;
CREATE SCHEMA IF NOT EXISTS live;
CREATE SCHEMA IF NOT EXISTS tiering;
CREATE SCHEMA IF NOT EXISTS tiering_stage;
CREATE SCHEMA IF NOT EXISTS tier_trash;

-- How far each journal of buffered writes has been written to this database: changed in the transaction of its rows,
-- so that after a crash every row that was acknowledged is written once (tiering/access/behind.py).
CREATE TABLE IF NOT EXISTS tiering.journal (
    journal    text        PRIMARY KEY,
    position   bigint      NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Fence of a sealed unit. Applications write to hot.<dataset>, whose late partition takes every row of a
-- sealed unit; this is the backstop for somebody who writes to a sealed partition by its own name.
CREATE OR REPLACE FUNCTION tiering.refuse_sealed_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%.% is sealed', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = 'Write to the hot.<dataset> table: late rows are kept and merged by the next run.';
END $$;
