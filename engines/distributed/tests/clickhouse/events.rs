//! Detections, guard actions, deliveries and audit come back.

use std::time::Duration;

use panopticon_core::{
    ids::EventId,
    proto::log::{AuditEntry, Delivery, Detection, GuardAction, Window},
    store::{Attempt, EventQuery, Rows, TraceStore},
    time::Time,
    topic::Topic,
};
use uuid::Uuid;

use crate::fixture::{Fixture, app, now, numbered};

fn detection(id: &str, at: Time, phase: &str) -> Detection {
    Detection {
        detection_id: id.into(),
        rule: "burst".into(),
        kind: "calls".into(),
        client_id: app().to_string(),
        user_sub: "user_1".into(),
        severity: "high".into(),
        score: 87.123_456_789_012_34,
        detected_at: at.micros(),
        emitted_at: at.micros() + 5,
        deciding_event_id: Uuid::from_u128(5).to_string(),
        window: Some(Window { start: at.micros() - 60, end: at.micros() }),
        observed: 0.1 + 0.2,
        expected: 1e-9,
        explanation: "it's \"much\" \\ more".into(),
        phase: phase.into(),
        ended_at: if phase == "ended" { at.micros() + 99 } else { 0 },
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn detections_come_once_each_as_ended_when_they_have_ended() {
    let Some(f) = Fixture::new().await else { return };
    let at = now();
    let messages = vec![
        detection("d1", at, "started"),
        detection("d2", at.plus(Duration::from_secs(1)), "started"),
        detection("d1", at, "ended"),
        detection("d3", at, "started"),
    ];
    let range = f.range(Topic::Detections, 0, 0, 4);
    for attempt in [Attempt::First, Attempt::Again] {
        let rows = Rows::Detections(numbered(messages.clone()));
        assert_eq!(f.store.insert(range, rows, attempt).await.unwrap(), []);
    }
    let mut query = EventQuery { client_id: Some(app()), limit: 2, ..Default::default() };
    let page = f.store.detections(&query).await.unwrap();
    assert_eq!(page.items, [messages[1].clone(), messages[3].clone()]);
    assert!(page.more);
    query.before = Some((at, "d3".into()));
    let page = f.store.detections(&query).await.unwrap();
    assert_eq!(page.items, [messages[2].clone()]);
    assert!(!page.more);

    let count = async |query: EventQuery| {
        f.store.detections(&EventQuery { limit: 9, ..query }).await.unwrap().items.len()
    };
    assert_eq!(count(EventQuery { id: Some("d2".into()), ..Default::default() }).await, 1);
    assert_eq!(count(EventQuery { user_sub: Some("user_2".into()), ..Default::default() }).await, 0);
    let event_id = Some(EventId(Uuid::from_u128(5)));
    assert_eq!(count(EventQuery { deciding_event_id: event_id, ..Default::default() }).await, 3);
    let since = Some(at.plus(Duration::from_secs(1)));
    assert_eq!(count(EventQuery { since, ..Default::default() }).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_deliveries_and_audit_read_back_as_they_were_stored() {
    let Some(f) = Fixture::new().await else { return };
    let at = now();
    let action = GuardAction {
        action_id: "a1".into(),
        r#type: "panopticon.anomaly_detected".into(),
        client_id: app().to_string(),
        user_sub: "user_1".into(),
        created_at: at.micros(),
        detection: Some(detection("d1", at, "started")),
        ..Default::default()
    };
    let range = f.range(Topic::GuardActions, 0, 0, 1);
    f.store.insert(range, Rows::GuardActions(numbered(vec![action.clone()])), Attempt::First).await.unwrap();
    let all = EventQuery { limit: 9, ..Default::default() };
    assert_eq!(f.store.actions(&all).await.unwrap().items, std::slice::from_ref(&action));

    let delivery = |id: &str, state: &str, attempts: u32| Delivery {
        delivery_id: id.into(),
        webhook_id: "a1".into(),
        endpoint_id: "e1".into(),
        client_id: app().to_string(),
        r#type: action.r#type.clone(),
        body: vec![0, 159, 146, 150, b'"'].into(),
        state: state.into(),
        attempts,
        created_at: at.micros(),
        updated_at: at.micros() + i64::from(attempts),
        ..Default::default()
    };
    let states =
        vec![delivery("x1", "pending", 0), delivery("x2", "pending", 0), delivery("x1", "delivered", 1)];
    let range = f.range(Topic::WebhookDeliveries, 0, 0, 3);
    f.store.insert(range, Rows::Deliveries(numbered(states.clone())), Attempt::First).await.unwrap();
    let of_webhook = EventQuery { id: Some("a1".into()), limit: 1, ..Default::default() };
    let page = f.store.deliveries(&of_webhook).await.unwrap();
    assert_eq!((page.items, page.more), (vec![states[1].clone()], true));
    let before = Some((at, "x2".to_owned()));
    let page = f.store.deliveries(&EventQuery { before, limit: 9, ..Default::default() }).await.unwrap();
    assert_eq!((page.items, page.more), (vec![states[2].clone()], false));
    let count = async |query: EventQuery| {
        f.store.deliveries(&EventQuery { limit: 9, ..query }).await.unwrap().items.len()
    };
    assert_eq!(count(EventQuery { endpoint_id: Some("e1".into()), ..Default::default() }).await, 2);
    assert_eq!(count(EventQuery { endpoint_id: Some("e2".into()), ..Default::default() }).await, 0);
    let deciding_event_id = Some(EventId(Uuid::from_u128(5)));
    assert_eq!(count(EventQuery { deciding_event_id, ..Default::default() }).await, 2);

    let entry = |id: &str, offset: i64| AuditEntry {
        audit_id: id.into(),
        at: at.micros() + offset,
        actor: "admin".into(),
        action: "app.enabled".into(),
        client_id: app().to_string(),
        detail: r#"{"hmac":true}"#.into(),
        ..Default::default()
    };
    let entries = vec![entry("u1", 0), entry("u2", 1)];
    let range = f.range(Topic::Audit, 0, 0, 2);
    f.store.insert(range, Rows::Audit(numbered(entries.clone())), Attempt::Again).await.unwrap();
    let newest_first: Vec<AuditEntry> = entries.into_iter().rev().collect();
    assert_eq!(f.store.audit(&all).await.unwrap().items, newest_first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detection_that_json_cannot_hold_is_refused() {
    let Some(f) = Fixture::new().await else { return };
    let poison = Detection { score: f64::NAN, ..detection("d2", now(), "started") };
    let rows = Rows::Detections(numbered(vec![detection("d1", now(), "started"), poison]));
    let range = f.range(Topic::Detections, 0, 0, 2);
    let refused = f.store.insert(range, rows, Attempt::First).await.unwrap();
    assert_eq!(refused.len(), 1);
    let all = f.store.detections(&EventQuery { limit: 9, ..Default::default() }).await.unwrap();
    assert_eq!(all.items.len(), 1);
}
