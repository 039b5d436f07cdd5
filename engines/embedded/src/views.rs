//! The views that analysts read: the names and columns that ClickHouse has in the distributed engine. They
//! are made anew at every start, since they hold nothing.

const EVENT_ID: &str = "lower(substr(hex(event_id), 1, 8) || '-' || substr(hex(event_id), 9, 4) || '-' ||
    substr(hex(event_id), 13, 4) || '-' || substr(hex(event_id), 17, 4) || '-' ||
    substr(hex(event_id), 21)) AS event_id";

const LOG: &str = "log_partition, log_offset";

const FIGURES: &str = "sum(traces) AS traces, sum(iif(status <> 'ok', traces, 0)) AS errors,
    sum(iif(status = 'denied', traces, 0)) AS denied, sum(duration_ms) AS duration_ms";

/// The statements that make all views.
pub(crate) fn all() -> String {
    [raw(), usage(), events()].concat()
}

fn view(name: &str, columns: &str, from: &str) -> String {
    format!("DROP VIEW IF EXISTS {name}; CREATE VIEW {name} AS SELECT {columns} FROM {from};\n")
}

/// Microseconds as RFC 3339; an absent time is NULL.
fn time(column: &str) -> String {
    format!(
        "iif({column} = 0, NULL, strftime('%Y-%m-%dT%H:%M:%S', {column} / 1000000, 'unixepoch') ||
         printf('.%06dZ', {column} % 1000000)) AS {column}"
    )
}

fn raw() -> String {
    let columns = format!(
        "{EVENT_ID}, client_id, user_sub, tool, scope_used, status, {}, duration_ms, session_id, agent,
         source_ip, error_code, attributes, {}, late, {LOG}, log_index",
        time("started_at"),
        time("received_at")
    );
    let alive =
        "traces_rows WHERE received_at >= unixepoch() * 1000000 - (SELECT raw_us FROM store_settings)";
    view("traces", &columns, alive)
}

fn usage() -> String {
    let date = "date(day * 86400, 'unixepoch') AS date";
    let by = |name: &str, column: &str| {
        let columns = format!("client_id, {date}, {column}, {FIGURES}");
        view(name, &columns, &format!("usage_daily_rows GROUP BY client_id, day, {column}"))
    };
    [
        view(
            "usage_15m",
            "client_id, strftime('%Y-%m-%dT%H:%M:%SZ', bucket, 'unixepoch') AS bucket, user_sub, tool,
             scope_used, status, traces, duration_ms",
            "usage_15m_rows",
        ),
        view(
            "usage_daily",
            &format!("client_id, {date}, tool, scope_used, status, traces, duration_ms"),
            "usage_daily_rows",
        ),
        view(
            "usage_by_app_day",
            &format!("client_id, {date}, {FIGURES}"),
            "usage_daily_rows GROUP BY client_id, day",
        ),
        by("usage_by_tool_day", "tool"),
        by("usage_by_scope_day", "scope_used"),
        view(
            "usage_by_user_day",
            &format!("client_id, date(bucket, 'unixepoch') AS date, user_sub, {FIGURES}"),
            "usage_15m_rows GROUP BY client_id, bucket / 86400, user_sub",
        ),
    ]
    .concat()
}

fn events() -> String {
    let detections = format!(
        "detection_id, rule, kind, phase, client_id, user_sub, source_ip, tool, severity, score, {}, {}, {},
         deciding_event_id, {}, {}, observed, expected, explanation, data, {LOG}",
        time("detected_at"),
        time("emitted_at"),
        time("ended_at"),
        time("window_start"),
        time("window_end")
    );
    let actions = format!(
        "action_id, type, client_id, user_sub, {}, detection_id, rule, deciding_event_id, kill_state,
         kill_reason, kill_actor, endpoint_id, data, {LOG}",
        time("created_at")
    );
    let deliveries = format!(
        "delivery_id, webhook_id, endpoint_id, client_id, type, CAST(body AS TEXT) AS body, state, attempts,
         {}, {}, {}, last_status, last_error, last_latency_ms, replayed, data, {LOG}",
        time("created_at"),
        time("updated_at"),
        time("next_attempt_at")
    );
    let audit = format!(
        "audit_id, {}, actor, action, client_id, target, detail, request_id, data, {LOG}",
        time("at")
    );
    [
        view("detections", &detections, "detections_rows"),
        view("guard_actions", &actions, "guard_actions_rows"),
        view("webhook_deliveries", &deliveries, "webhook_deliveries_rows"),
        view("audit", &audit, "audit_rows"),
    ]
    .concat()
}
