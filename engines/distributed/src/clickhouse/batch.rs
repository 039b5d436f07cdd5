//! A batch in the form in which it is sent: the rows of one table in RowBinary, and where each begins.
//! It is kept until its outcome is known.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use panopticon_core::{
    proto::log::{AuditEntry, Delivery, Detection, GuardAction},
    store::{BatchRange, RefusedRow, Row, Rows},
    time::Time,
    trace::{Status, TakenBytes, TakenRef},
};
use uuid::Uuid;

use super::row_binary::Writer;

/// Times that ClickHouse keeps and partitions by without surprises: from 1970 on, before 2100.
const TIMES: Range<i64> = 0..4_102_444_800_000_000;

/// Bits of a position that count the rows of one record; a record of 4 MiB holds fewer.
pub(super) const INDEX_BITS: u32 = 20;

/// Where a row's record is, as one number: what usage tables remember.
pub(super) fn position(offset: u64, index: u32) -> u64 {
    (offset << INDEX_BITS) + u64::from(index)
}

/// A table that batches go to.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// In the order in which rows are written. `repaired`, where there is one, comes last.
    pub(super) columns: &'static str,
    /// The column that retention goes by, if there is one.
    pub(super) expires_by: Option<&'static str>,
}

pub(super) const TRACES: Table = Table {
    name: "traces",
    columns: "event_id, client_id, user_sub, tool, scope_used, status, started_at, duration_ms, session_id, \
              agent, source_ip, error_code, attributes, received_at, late, log_id, log_partition, \
              log_offset, log_index, repaired",
    expires_by: Some("received_at"),
};

const DETECTIONS: Table = Table {
    name: "detections",
    columns: "detection_id, rule, kind, phase, client_id, user_sub, source_ip, tool, severity, score, \
              detected_at, emitted_at, ended_at, deciding_event_id, window_start, window_end, observed, \
              expected, explanation, data, log_id, log_partition, log_offset, log_index",
    expires_by: None,
};

const GUARD_ACTIONS: Table = Table {
    name: "guard_actions",
    columns: "action_id, type, client_id, user_sub, created_at, detection_id, rule, deciding_event_id, \
              kill_state, kill_reason, kill_actor, endpoint_id, data, log_id, log_partition, log_offset, \
              log_index",
    expires_by: None,
};

const DELIVERIES: Table = Table {
    name: "webhook_deliveries",
    columns: "delivery_id, webhook_id, endpoint_id, client_id, type, body, state, attempts, created_at, \
              updated_at, next_attempt_at, last_status, last_error, last_latency_ms, replayed, data, \
              log_id, log_partition, log_offset, log_index",
    expires_by: Some("created_at"),
};

const AUDIT: Table = Table {
    name: "audit",
    columns: "audit_id, at, actor, action, client_id, target, detail, request_id, data, log_id, \
              log_partition, log_offset, log_index",
    expires_by: None,
};

/// A row of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) index: u32,
    /// The time that retention goes by, in microseconds.
    pub(super) time: i64,
    /// Where its bytes end.
    end: usize,
}

/// Rows ready to be sent, in the order of the log.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) table: &'static Table,
    pub(super) entries: Vec<Entry>,
    bytes: Bytes,
}

impl Batch {
    /// Writes the rows; those that no table can hold are answered beside it.
    pub(super) fn new(range: &BatchRange, rows: &Rows) -> (Self, Vec<RefusedRow>) {
        match rows {
            Rows::Traces(rows) => write(&TRACES, range, rows, trace),
            Rows::Detections(rows) => write(&DETECTIONS, range, rows, detection),
            Rows::GuardActions(rows) => write(&GUARD_ACTIONS, range, rows, guard_action),
            Rows::Deliveries(rows) => write(&DELIVERIES, range, rows, delivery),
            Rows::Audit(rows) => write(&AUDIT, range, rows, audit),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The bytes of some consecutive rows.
    pub(super) fn bytes(&self, rows: Range<usize>) -> Bytes {
        self.bytes.slice(self.start(rows.start)..self.start(rows.end))
    }

    fn start(&self, row: usize) -> usize {
        row.checked_sub(1).map_or(0, |before| self.entries[before].end)
    }

    /// The batch of these rows alone, for putting them in later: their traces are marked as repaired.
    pub(super) fn repair(&self, rows: &[usize]) -> Self {
        let mut bytes = Vec::new();
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            bytes.extend_from_slice(&self.bytes(*row..*row + 1));
            if self.table.name == TRACES.name {
                // The flag is the last column.
                if let Some(repaired) = bytes.last_mut() {
                    *repaired = 1;
                }
            }
            entries.push(Entry { end: bytes.len(), ..self.entries[*row] });
        }
        Self { table: self.table, entries, bytes: bytes.into() }
    }
}

/// Appends a row's own columns and answers the time that retention goes by, or why no table can hold it.
type WriteRow<T> = fn(&T, &mut Writer) -> Result<i64, String>;

fn write<T>(
    table: &'static Table,
    range: &BatchRange,
    rows: &[Row<T>],
    write_row: WriteRow<T>,
) -> (Batch, Vec<RefusedRow>) {
    let mut out = Writer(Vec::with_capacity(rows.len() * 256));
    let mut entries = Vec::with_capacity(rows.len());
    let mut refused = Vec::new();
    for Row { offset, index, value } in rows {
        let start = out.0.len();
        match write_row(value, &mut out) {
            Ok(time) => {
                out.u64(range.log_id.0).u32(range.partition).u64(*offset).u32(*index);
                if table.name == TRACES.name {
                    out.bool(false);
                }
                entries.push(Entry { offset: *offset, index: *index, time, end: out.0.len() });
            }
            Err(error) => {
                out.0.truncate(start);
                refused.push(RefusedRow { offset: *offset, index: *index, error });
            }
        }
    }
    (Batch { table, entries, bytes: out.0.into() }, refused)
}

fn keepable(name: &str, micros: i64) -> Result<i64, String> {
    match TIMES.contains(&micros) {
        true => Ok(micros),
        false => Err(format!("{name} {} is not between 1970 and 2100", Time::from_micros(micros))),
    }
}

/// Dates of a trace are its partition, its bucket and its retention.
fn trace(row: &TakenBytes, out: &mut Writer) -> Result<i64, String> {
    let (TakenRef { trace, received_at, late, place: _ }, facts) =
        row.read().map_err(|error| error.to_string())?;
    // Of a key that came twice the last one counts.
    let attributes: BTreeMap<&str, &str> = trace.attributes.into_iter().collect();
    out.uuid(&facts.event_id.0)
        .text(trace.client_id)
        .text(trace.user_sub)
        .text(trace.tool)
        .text(trace.scope_used)
        .u8(status_code(facts.status))
        .i64(keepable("started_at", facts.started_at.micros())?)
        .u32(facts.duration_ms)
        .text(trace.session_id)
        .text(trace.agent)
        .text(trace.source_ip)
        .text(trace.error_code)
        .map(attributes.into_iter())
        .i64(keepable("received_at", received_at.micros())?)
        .bool(late);
    Ok(received_at.micros())
}

/// The number of a status in the tables' Enum8.
pub(super) fn status_code(status: Status) -> u8 {
    match status {
        Status::Ok => 1,
        Status::Error => 2,
        Status::Denied => 3,
    }
}

fn detection(row: &Detection, out: &mut Writer) -> Result<i64, String> {
    finite(row)?;
    let window = row.window.unwrap_or_default();
    out.text(&row.detection_id)
        .text(&row.rule)
        .text(&row.kind)
        .text(&row.phase)
        .text(&row.client_id)
        .text(&row.user_sub)
        .text(&row.source_ip)
        .text(&row.tool)
        .text(&row.severity)
        .f64(row.score)
        .i64(keepable("detected_at", row.detected_at)?)
        .optional_time(keepable("emitted_at", row.emitted_at)?)
        .optional_time(keepable("ended_at", row.ended_at)?)
        .uuid(&event_id(&row.deciding_event_id))
        .optional_time(keepable("window.start", window.start)?)
        .optional_time(keepable("window.end", window.end)?)
        .f64(row.observed)
        .f64(row.expected)
        .text(&row.explanation)
        .text(&json(row)?);
    Ok(row.detected_at)
}

fn guard_action(row: &GuardAction, out: &mut Writer) -> Result<i64, String> {
    let detection = row.detection.clone().unwrap_or_default();
    finite(&detection)?;
    let kill = row.kill.clone().unwrap_or_default();
    let test = row.test.clone().unwrap_or_default();
    out.text(&row.action_id)
        .text(&row.r#type)
        .text(&row.client_id)
        .text(&row.user_sub)
        .i64(keepable("created_at", row.created_at)?)
        .text(&detection.detection_id)
        .text(&detection.rule)
        .uuid(&event_id(&detection.deciding_event_id))
        .text(&kill.state)
        .text(&kill.reason)
        .text(&kill.actor)
        .text(&test.endpoint_id)
        .text(&json(row)?);
    Ok(row.created_at)
}

fn delivery(row: &Delivery, out: &mut Writer) -> Result<i64, String> {
    out.text(&row.delivery_id)
        .text(&row.webhook_id)
        .text(&row.endpoint_id)
        .text(&row.client_id)
        .text(&row.r#type)
        .bytes(&row.body)
        .text(&row.state)
        .u32(row.attempts)
        .i64(keepable("created_at", row.created_at)?)
        .i64(keepable("updated_at", row.updated_at)?)
        .optional_time(keepable("next_attempt_at", row.next_attempt_at)?)
        .u32(row.last_status)
        .text(&row.last_error)
        .u32(row.last_latency_ms)
        .bool(row.replayed)
        // JSON has no bytes: the body has a column of its own.
        .text(&json(&Delivery { body: bytes::Bytes::new(), ..row.clone() })?);
    Ok(row.created_at)
}

fn audit(row: &AuditEntry, out: &mut Writer) -> Result<i64, String> {
    out.text(&row.audit_id)
        .i64(keepable("at", row.at)?)
        .text(&row.actor)
        .text(&row.action)
        .text(&row.client_id)
        .text(&row.target)
        .text(&row.detail)
        .text(&row.request_id)
        .text(&json(row)?);
    Ok(row.at)
}

/// JSON has no other numbers: they would not read back.
fn finite(row: &Detection) -> Result<(), String> {
    match [row.score, row.observed, row.expected].iter().all(|number| number.is_finite()) {
        true => Ok(()),
        false => Err("score, observed and expected must be finite".to_owned()),
    }
}

/// All zeros where there is none.
fn event_id(text: &str) -> Uuid {
    Uuid::try_parse(text).unwrap_or_default()
}

fn json(message: &impl serde::Serialize) -> Result<String, String> {
    serde_json::to_string(message).map_err(|error| format!("cannot be written as JSON: {error}"))
}
