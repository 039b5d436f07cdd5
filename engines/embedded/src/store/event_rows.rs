//! Rows of the small tables: what rules found, what RPs were told, how it was delivered, who changed what.

use panopticon_core::{
    proto::log::{AuditEntry, Delivery, Detection, GuardAction},
    store::Row,
};
use prost::Message as _;
use rusqlite::{OptionalExtension as _, params};
use serde_json::Value;

use crate::{fault::Fault, writer::Tx};

/// Writes detections: one row a message, and what is known of the episode by now into the first of its id.
pub(super) fn put_detections(tx: &mut Tx<'_>, partition: u32, rows: &[Row<Detection>]) -> Result<(), Fault> {
    let mut insert = tx.conn.prepare_cached(
        "INSERT INTO detections_rows (detection_id, listed, rule, kind, phase, client_id, user_sub,
             source_ip, tool, severity, score, detected_at, emitted_at, ended_at, deciding_event_id,
             window_start, window_end, observed, expected, explanation, data, log_partition, log_offset,
             message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20,
             ?21, ?22, ?23, ?24)",
    )?;
    for Row { offset, value, .. } in rows {
        let is_new = !merge_into_listed(tx, value)?;
        let window = value.window.unwrap_or_default();
        insert.execute(params![
            value.detection_id,
            is_new,
            value.rule,
            value.kind,
            value.phase,
            value.client_id,
            value.user_sub,
            value.source_ip,
            value.tool,
            value.severity,
            value.score,
            value.detected_at,
            value.emitted_at,
            value.ended_at,
            value.deciding_event_id,
            window.start,
            window.end,
            value.observed,
            value.expected,
            value.explanation,
            json(value)?.to_string(),
            partition,
            offset.cast_signed(),
            if is_new { value.encode_to_vec() } else { Vec::new() },
        ])?;
    }
    Ok(())
}

/// Adds what `new` says to the row of its id that is listed; answers whether there is one.
fn merge_into_listed(tx: &Tx<'_>, new: &Detection) -> Result<bool, Fault> {
    let found: Option<(i64, Vec<u8>)> = tx
        .conn
        .prepare_cached("SELECT row, message FROM detections_rows WHERE detection_id = ?1 AND listed")?
        .query_row([&new.detection_id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((row, message)) = found else { return Ok(false) };
    let mut known = Detection::decode(&message[..]).map_err(|error| Fault::Broken(error.to_string()))?;
    if new.phase == "ended" {
        known.phase.clone_from(&new.phase);
        known.ended_at = new.ended_at;
        tx.conn
            .prepare_cached("UPDATE detections_rows SET message = ?2 WHERE row = ?1")?
            .execute(params![row, known.encode_to_vec()])?;
    }
    Ok(true)
}

/// Writes guard actions; one that is there already is left as it is.
pub(super) fn put_actions(tx: &mut Tx<'_>, partition: u32, rows: &[Row<GuardAction>]) -> Result<(), Fault> {
    let mut insert = tx.conn.prepare_cached(
        "INSERT INTO guard_actions_rows (action_id, type, client_id, user_sub, created_at, detection_id,
             rule, deciding_event_id, kill_state, kill_reason, kill_actor, endpoint_id, data, log_partition,
             log_offset, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
         ON CONFLICT DO NOTHING",
    )?;
    for Row { offset, value, .. } in rows {
        let detection = value.detection.clone().unwrap_or_default();
        let kill = value.kill.clone().unwrap_or_default();
        let endpoint_id = match (&value.test, &value.replay) {
            (Some(test), _) => &test.endpoint_id,
            (None, Some(replay)) => &replay.endpoint_id,
            (None, None) => "",
        };
        insert.execute(params![
            value.action_id,
            value.r#type,
            value.client_id,
            value.user_sub,
            value.created_at,
            detection.detection_id,
            detection.rule,
            detection.deciding_event_id,
            kill.state,
            kill.reason,
            kill.actor,
            endpoint_id,
            json(value)?.to_string(),
            partition,
            offset.cast_signed(),
            value.encode_to_vec(),
        ])?;
    }
    Ok(())
}

/// Writes changes of deliveries; the last one of each is the latest.
pub(super) fn put_deliveries(tx: &mut Tx<'_>, partition: u32, rows: &[Row<Delivery>]) -> Result<(), Fault> {
    let mut overtake = tx
        .conn
        .prepare_cached("UPDATE webhook_deliveries_rows SET latest = 0 WHERE delivery_id = ?1 AND latest")?;
    let mut insert = tx.conn.prepare_cached(
        "INSERT INTO webhook_deliveries_rows (delivery_id, latest, webhook_id, endpoint_id, client_id,
             type, body, state, attempts, created_at, updated_at, next_attempt_at, last_status,
             last_error, last_latency_ms, replayed, data, log_partition, log_offset, message)
         VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
    )?;
    for Row { offset, value, .. } in rows {
        overtake.execute([&value.delivery_id])?;
        let without_body = Delivery { body: bytes::Bytes::new(), ..value.clone() };
        let mut data = json(&without_body)?;
        if let Value::Object(fields) = &mut data {
            fields.remove("body");
        }
        insert.execute(params![
            value.delivery_id,
            value.webhook_id,
            value.endpoint_id,
            value.client_id,
            value.r#type,
            &value.body[..],
            value.state,
            value.attempts,
            value.created_at,
            value.updated_at,
            value.next_attempt_at,
            value.last_status,
            value.last_error,
            value.last_latency_ms,
            value.replayed,
            data.to_string(),
            partition,
            offset.cast_signed(),
            without_body.encode_to_vec(),
        ])?;
    }
    Ok(())
}

/// Writes audit entries; one that is there already is left as it is.
pub(super) fn put_audit(tx: &mut Tx<'_>, partition: u32, rows: &[Row<AuditEntry>]) -> Result<(), Fault> {
    let mut insert = tx.conn.prepare_cached(
        "INSERT INTO audit_rows (audit_id, at, actor, action, client_id, target, detail, request_id, data,
             log_partition, log_offset, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT DO NOTHING",
    )?;
    for Row { offset, value, .. } in rows {
        insert.execute(params![
            value.audit_id,
            value.at,
            value.actor,
            value.action,
            value.client_id,
            value.target,
            value.detail,
            value.request_id,
            json(value)?.to_string(),
            partition,
            offset.cast_signed(),
            value.encode_to_vec(),
        ])?;
    }
    Ok(())
}

pub(super) fn json<T: serde::Serialize>(message: &T) -> Result<Value, Fault> {
    serde_json::to_value(message).map_err(|error| Fault::Broken(error.to_string()))
}
