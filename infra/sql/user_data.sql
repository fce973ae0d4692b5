-- What users do and have (hot tier). user_activity and audit_log are histories: they move by age, and are
-- partitioned like market data. The other three are the present: they never move, and backups carry them.
CREATE TABLE IF NOT EXISTS hot.user_activity (
    user_id     text        NOT NULL,
    activity_id uuid        NOT NULL,
    ts          timestamptz NOT NULL,
    action      text        NOT NULL,
    symbol      text,
    details     jsonb,
    ip          inet,
    session_id  text,
    PRIMARY KEY (user_id, ts, activity_id)
) PARTITION BY RANGE (ts);

-- One row per operation; the lake's copies of it are under object lock (deployments/policies.yaml).
CREATE TABLE IF NOT EXISTS hot.audit_log (
    event_id      uuid        NOT NULL,
    ts            timestamptz NOT NULL,
    user_id       text,                                -- null: the system itself
    actor         text        NOT NULL,
    action_type   text        NOT NULL,
    action        text        NOT NULL,
    details       jsonb,
    success       boolean     NOT NULL,
    error_message text,
    duration_ms   integer,
    ip            inet,
    user_agent    text,
    PRIMARY KEY (ts, event_id)
) PARTITION BY RANGE (ts);

CREATE TABLE IF NOT EXISTS hot.user_configurations (
    user_id    text        NOT NULL PRIMARY KEY,
    settings   jsonb       NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS hot.positions (
    user_id    text           NOT NULL,
    symbol     text           NOT NULL,
    quantity   numeric(18, 4) NOT NULL,
    avg_price  numeric(18, 8) NOT NULL,
    currency   text           NOT NULL,
    opened_at  timestamptz    NOT NULL,
    updated_at timestamptz    NOT NULL,
    PRIMARY KEY (user_id, symbol)
);

CREATE TABLE IF NOT EXISTS hot.alert_triggers (
    alert_id   uuid           NOT NULL PRIMARY KEY,
    user_id    text           NOT NULL,
    symbol     text           NOT NULL,
    condition  text           NOT NULL,
    threshold  numeric(18, 8) NOT NULL,
    is_active  boolean        NOT NULL,
    updated_at timestamptz    NOT NULL
);
