-- What is kept for good: counts by 15 minutes, fine enough for the days of every time zone, and by UTC date.
--
-- Rows of one key are added up by merges: always read with sum() and GROUP BY, or through the views.
-- `log_id`, `log_partition` and `position` say up to which record of the topic a row has counted: a batch's
-- share of a key lies in one part, so it is there exactly if `position` has reached it.
CREATE TABLE IF NOT EXISTS usage_15m
(
    client_id     LowCardinality(String),
    bucket        DateTime('UTC') CODEC(Delta, ZSTD(1)),
    user_sub      String,
    tool          LowCardinality(String),
    scope_used    LowCardinality(String),
    status        Enum8('ok' = 1, 'error' = 2, 'denied' = 3),
    traces        UInt64 CODEC(ZSTD(1)),
    duration_ms   UInt64 CODEC(ZSTD(1)),
    log_id        UInt64 CODEC(ZSTD(1)),
    log_partition UInt32 CODEC(ZSTD(1)),
    position      SimpleAggregateFunction(max, UInt64) CODEC(ZSTD(1)),
    INDEX by_position position TYPE minmax GRANULARITY 1
)
ENGINE = SummingMergeTree
PARTITION BY toYear(bucket)
ORDER BY (client_id, bucket, user_sub, tool, scope_used, status, log_id, log_partition)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS usage_daily
(
    client_id        LowCardinality(String),
    date             Date CODEC(Delta, ZSTD(1)),
    tool             LowCardinality(String),
    scope_used       LowCardinality(String),
    status           Enum8('ok' = 1, 'error' = 2, 'denied' = 3),
    traces           UInt64 CODEC(ZSTD(1)),
    duration_ms      UInt64 CODEC(ZSTD(1)),
    last_received_at SimpleAggregateFunction(max, DateTime64(6, 'UTC')) CODEC(ZSTD(1)),
    log_id           UInt64 CODEC(ZSTD(1)),
    log_partition    UInt32 CODEC(ZSTD(1)),
    position         SimpleAggregateFunction(max, UInt64) CODEC(ZSTD(1)),
    INDEX by_position position TYPE minmax GRANULARITY 1
)
ENGINE = SummingMergeTree
PARTITION BY toYear(date)
ORDER BY (client_id, date, tool, scope_used, status, log_id, log_partition)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_15m_from_traces TO usage_15m AS
SELECT
    t.client_id AS client_id,
    toStartOfFifteenMinutes(t.started_at) AS bucket,
    t.user_sub AS user_sub,
    t.tool AS tool,
    t.scope_used AS scope_used,
    t.status AS status,
    count() AS traces,
    sum(t.duration_ms) AS duration_ms,
    t.log_id AS log_id,
    t.log_partition AS log_partition,
    max(bitShiftLeft(t.log_offset, 20) + t.log_index) AS position
FROM traces AS t
WHERE NOT t.repaired
GROUP BY client_id, bucket, user_sub, tool, scope_used, status, log_id, log_partition;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_daily_from_traces TO usage_daily AS
SELECT
    t.client_id AS client_id,
    toDate(t.started_at) AS date,
    t.tool AS tool,
    t.scope_used AS scope_used,
    t.status AS status,
    count() AS traces,
    sum(t.duration_ms) AS duration_ms,
    max(t.received_at) AS last_received_at,
    t.log_id AS log_id,
    t.log_partition AS log_partition,
    max(bitShiftLeft(t.log_offset, 20) + t.log_index) AS position
FROM traces AS t
WHERE NOT t.repaired
GROUP BY client_id, date, tool, scope_used, status, log_id, log_partition;
