-- The small tables: what rules found, what RPs were told, how it was delivered, who changed what.
--
-- One row a message of the topic of the same name: a detection has one row when it starts and one when it
-- ends, a delivery one for every change of its state. `data` is the whole message as JSON. Absent text is
-- empty, an absent time NULL, an absent event id all zeros.
CREATE TABLE IF NOT EXISTS detections
(
    detection_id      String,
    rule              LowCardinality(String),
    kind              LowCardinality(String),
    phase             LowCardinality(String),
    client_id         LowCardinality(String),
    user_sub          String,
    source_ip         String,
    tool              LowCardinality(String),
    severity          LowCardinality(String),
    score             Float64,
    detected_at       DateTime64(6, 'UTC'),
    emitted_at        Nullable(DateTime64(6, 'UTC')),
    ended_at          Nullable(DateTime64(6, 'UTC')),
    deciding_event_id UUID,
    window_start      Nullable(DateTime64(6, 'UTC')),
    window_end        Nullable(DateTime64(6, 'UTC')),
    observed          Float64,
    expected          Float64,
    explanation       String,
    data              String CODEC(ZSTD(1)),
    log_id            UInt64,
    log_partition     UInt32,
    log_offset        UInt64,
    log_index         UInt32,
    INDEX by_id detection_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_event deciding_event_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_offset log_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
ORDER BY (client_id, detected_at, detection_id)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS guard_actions
(
    action_id         String,
    type              LowCardinality(String),
    client_id         LowCardinality(String),
    user_sub          String,
    created_at        DateTime64(6, 'UTC'),
    detection_id      String,
    rule              LowCardinality(String),
    deciding_event_id UUID,
    kill_state        LowCardinality(String),
    kill_reason       String,
    kill_actor        String,
    endpoint_id       String,
    data              String CODEC(ZSTD(1)),
    log_id            UInt64,
    log_partition     UInt32,
    log_offset        UInt64,
    log_index         UInt32,
    INDEX by_id action_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_event deciding_event_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_offset log_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
ORDER BY (client_id, created_at, action_id)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Bodies repeat what detections say of users, so these rows go with the raw traces.
CREATE TABLE IF NOT EXISTS webhook_deliveries
(
    delivery_id     String,
    webhook_id      String,
    endpoint_id     String,
    client_id       LowCardinality(String),
    type            LowCardinality(String),
    body            String CODEC(ZSTD(1)),
    state           LowCardinality(String),
    attempts        UInt32,
    created_at      DateTime64(6, 'UTC'),
    updated_at      DateTime64(6, 'UTC'),
    next_attempt_at Nullable(DateTime64(6, 'UTC')),
    last_status     UInt32,
    last_error      String,
    last_latency_ms UInt32,
    replayed        Bool,
    data            String CODEC(ZSTD(1)),
    log_id          UInt64,
    log_partition   UInt32,
    log_offset      UInt64,
    log_index       UInt32,
    INDEX by_webhook webhook_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_offset log_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(created_at)
ORDER BY (client_id, created_at, delivery_id)
TTL toDateTime(created_at) + INTERVAL {raw_days} DAY
SETTINGS
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    merge_with_ttl_timeout = 86400;

CREATE TABLE IF NOT EXISTS audit
(
    audit_id      String,
    at            DateTime64(6, 'UTC'),
    actor         String,
    action        LowCardinality(String),
    client_id     LowCardinality(String),
    target        String,
    detail        String CODEC(ZSTD(1)),
    request_id    String,
    data          String CODEC(ZSTD(1)),
    log_id        UInt64,
    log_partition UInt32,
    log_offset    UInt64,
    log_index     UInt32,
    INDEX by_offset log_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
ORDER BY (at, audit_id)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;
