-- Raw traces, one row each. `{raw_days}` is the configured `retention.raw_days`.
--
-- The key serves the timeline of an app. `by_event_id` serves look-ups by id alone, `by_offset` finds what
-- is there of a batch. `log_id` to `log_index` say which record of the topic `traces` a row came from: what
-- makes inserts exactly-once. `repaired` rows were put in by a recovery, which counted them itself: the
-- materialized views leave them out.
CREATE TABLE IF NOT EXISTS traces
(
    event_id      UUID,
    client_id     LowCardinality(String),
    user_sub      String,
    tool          LowCardinality(String),
    scope_used    LowCardinality(String),
    status        Enum8('ok' = 1, 'error' = 2, 'denied' = 3),
    started_at    DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    duration_ms   UInt32 CODEC(ZSTD(1)),
    session_id    String CODEC(ZSTD(1)),
    agent         LowCardinality(String),
    source_ip     String CODEC(ZSTD(1)),
    error_code    LowCardinality(String),
    attributes    Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    received_at   DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    late          Bool,
    log_id        UInt64 CODEC(ZSTD(1)),
    log_partition UInt32 CODEC(ZSTD(1)),
    log_offset    UInt64 CODEC(Delta, ZSTD(1)),
    log_index     UInt32 CODEC(Delta, ZSTD(1)),
    repaired      Bool,
    INDEX by_event_id event_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_offset log_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (client_id, started_at, event_id)
TTL toDateTime(received_at) + INTERVAL {raw_days} DAY
SETTINGS
    -- Counts every insert into the table; at 20 a second an hour and a half.
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    -- Expired rows are merged away once a day; until then queries leave them out.
    merge_with_ttl_timeout = 86400;
