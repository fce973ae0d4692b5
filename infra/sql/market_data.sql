-- The market data tables that applications write to (hot tier). Bring your own: `tiering install` needs
-- only a table hot.<dataset>, range-partitioned by the dataset's time column, with a primary key.
CREATE TABLE IF NOT EXISTS hot.market_bars (
    symbol    text           NOT NULL,
    market    text           NOT NULL,
    timeframe text           NOT NULL,
    ts        timestamptz    NOT NULL,
    open      numeric(18, 8),
    high      numeric(18, 8),
    low       numeric(18, 8),
    close     numeric(18, 8),
    volume    bigint,
    amount    numeric(18, 2),
    source    text           NOT NULL,
    PRIMARY KEY (symbol, market, timeframe, ts, source)
) PARTITION BY RANGE (ts);

CREATE TABLE IF NOT EXISTS hot.index_bars (
    LIKE hot.market_bars INCLUDING ALL
) PARTITION BY RANGE (ts);

CREATE TABLE IF NOT EXISTS hot.technical_indicators (
    symbol    text           NOT NULL,
    indicator text           NOT NULL,
    timeframe text           NOT NULL,
    ts        timestamptz    NOT NULL,
    value     double precision,
    params    jsonb,
    PRIMARY KEY (symbol, indicator, timeframe, ts)
) PARTITION BY RANGE (ts);

CREATE TABLE IF NOT EXISTS hot.financial_statements (
    symbol        text        NOT NULL,
    report_period date        NOT NULL,
    report_type   text        NOT NULL,
    ts            timestamptz NOT NULL,
    source        text        NOT NULL,
    revenue       numeric(24, 4),
    net_income    numeric(24, 4),
    total_assets  numeric(24, 4),
    total_equity  numeric(24, 4),
    currency      text,
    raw           jsonb,
    PRIMARY KEY (symbol, report_period, report_type, ts, source)
) PARTITION BY RANGE (ts);
