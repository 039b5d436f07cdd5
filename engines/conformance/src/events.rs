//! The trace store: detections, guard actions, deliveries and audit entries.

use bytes::Bytes;
use jiff::civil::Date;
use panopticon_core::{
    proto::log::{AuditEntry, Delivery, Detection, GuardAction, KillSwitch, Window},
    store::{Attempt, EventQuery, Rows},
    time::Time,
    topic::Topic,
};

use crate::{
    EngineUnderTest, Ports,
    fixtures::{client, event, rows},
};

async fn insert(ports: &Ports, topic: Topic, from: u64, to: u64, rows: Rows) {
    let range = ports.range(topic, 0, from, to).await;
    assert_eq!(ports.store.insert(range, rows, Attempt::First).await.unwrap(), []);
}

fn all() -> EventQuery {
    EventQuery { limit: 100, ..EventQuery::default() }
}

fn detection(n: u128, app: &str, detected_at: i64) -> Detection {
    Detection {
        detection_id: format!("detection-{n:03}"),
        rule: "burst".to_owned(),
        kind: "rate".to_owned(),
        client_id: app.to_owned(),
        user_sub: format!("user_{}", n % 2),
        source_ip: "192.0.2.1".to_owned(),
        tool: "search".to_owned(),
        severity: "high".to_owned(),
        score: 87.1,
        detected_at,
        emitted_at: detected_at + 5,
        deciding_event_id: event(n).to_string(),
        window: Some(Window { start: detected_at - 60_000_000, end: detected_at }),
        observed: 0.1 + 0.2,
        expected: 1.0 / 3.0,
        explanation: "more than usual".to_owned(),
        phase: "started".to_owned(),
        ended_at: 0,
    }
}

/// The end is a message of its own, and changes nothing but that.
pub async fn an_episode_is_one_detection_and_ends<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now().micros();
    let started = detection(1, "app", now - 9_000_000);
    let other = detection(2, "app", now - 8_000_000);
    insert(&ports, Topic::Detections, 0, 2, Rows::Detections(rows(&[started.clone(), other.clone()], 0, 1)))
        .await;
    assert_eq!(ports.store.detections(&all()).await.unwrap().items, [other.clone(), started.clone()]);

    let ended = Detection { phase: "ended".to_owned(), ended_at: now, ..started };
    insert(&ports, Topic::Detections, 2, 3, Rows::Detections(rows(std::slice::from_ref(&ended), 2, 1))).await;
    let page = ports.store.detections(&all()).await.unwrap();
    assert_eq!(page.items, [other, ended]);
    assert!(!page.more);
}

/// By app, user, trace, id and time; a cursor goes on where the page ended.
pub async fn detections_are_filtered_and_paged<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now().micros();
    let at = |n: u128| now - 3_600_000_000 + (n as i64 / 3) * 1_000_000;
    let detections: Vec<_> =
        (0..30).map(|n| detection(n, if n < 20 { "app" } else { "other" }, at(n))).collect();
    insert(&ports, Topic::Detections, 0, 30, Rows::Detections(rows(&detections, 0, 1))).await;

    let ids = |items: &[Detection]| items.iter().map(|d| d.detection_id.clone()).collect::<Vec<_>>();
    let wanted = |lets_through: &dyn Fn(&Detection) -> bool| {
        let mut found: Vec<_> = detections.iter().filter(|d| lets_through(d)).cloned().collect();
        found.sort_by(|a, b| (b.detected_at, &b.detection_id).cmp(&(a.detected_at, &a.detection_id)));
        ids(&found)
    };
    let found = async |query: EventQuery| ids(&ports.store.detections(&query).await.unwrap().items);

    let app = EventQuery { client_id: Some(client("app")), ..all() };
    assert_eq!(found(app.clone()).await, wanted(&|d| d.client_id == "app"));
    let user = EventQuery { user_sub: Some("user_1".to_owned()), ..app.clone() };
    assert_eq!(found(user).await, wanted(&|d| d.client_id == "app" && d.user_sub == "user_1"));
    let since = EventQuery { since: Some(Time::from_micros(at(12))), ..app.clone() };
    assert_eq!(found(since).await, wanted(&|d| d.client_id == "app" && d.detected_at >= at(12)));
    let of_trace = EventQuery { deciding_event_id: Some(event(7)), ..all() };
    assert_eq!(found(of_trace).await, ["detection-007"]);
    let of_id = EventQuery { id: Some("detection-021".to_owned()), ..all() };
    assert_eq!(found(of_id).await, ["detection-021"]);

    let (mut query, mut paged) = (EventQuery { limit: 7, ..app }, Vec::new());
    loop {
        let page = ports.store.detections(&query).await.unwrap();
        let last = page.items.last().unwrap();
        query.before = Some((Time::from_micros(last.detected_at), last.detection_id.clone()));
        paged.extend(ids(&page.items));
        if !page.more {
            break;
        }
    }
    assert_eq!(paged, wanted(&|d| d.client_id == "app"));
}

/// A kill counts on its date; lifting it does not.
pub async fn kills_are_counted_and_actions_listed<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let at = Time::parse_rfc3339("2026-03-28T23:30:00Z").unwrap().micros();
    let kill = |n: i64, state: &str| GuardAction {
        action_id: format!("action-{n}"),
        r#type: "panopticon.kill_switch".to_owned(),
        client_id: "app".to_owned(),
        user_sub: String::new(),
        created_at: at + n,
        kill: Some(KillSwitch {
            client_id: "app".to_owned(),
            state: state.to_owned(),
            reason: "test".to_owned(),
            actor: "admin".to_owned(),
            ..KillSwitch::default()
        }),
        ..GuardAction::default()
    };
    let found = detection(3, "app", at);
    let anomaly = GuardAction {
        action_id: "action-3".to_owned(),
        r#type: "panopticon.anomaly_detected".to_owned(),
        client_id: "app".to_owned(),
        user_sub: found.user_sub.clone(),
        created_at: at + 3,
        detection: Some(found),
        ..GuardAction::default()
    };
    let actions = [kill(0, "killed"), kill(1, "lifted"), kill(2, "killed"), anomaly.clone()];
    insert(&ports, Topic::GuardActions, 0, 4, Rows::GuardActions(rows(&actions, 0, 1))).await;

    let listed = ports.store.actions(&EventQuery { client_id: Some(client("app")), ..all() }).await.unwrap();
    assert_eq!(listed.items, actions.iter().rev().cloned().collect::<Vec<_>>());
    let one = ports.store.actions(&EventQuery { id: Some("action-1".to_owned()), ..all() }).await.unwrap();
    assert_eq!(one.items, [actions[1].clone()]);
    let of_trace = EventQuery { deciding_event_id: Some(event(3)), ..all() };
    assert_eq!(ports.store.actions(&of_trace).await.unwrap().items, [anomaly]);

    let (first, last) = (Date::constant(2026, 3, 1), Date::constant(2026, 3, 31));
    for (zone, day) in [("UTC", 28), ("Europe/Berlin", 29)] {
        let usage = ports.store.usage(&client("app"), first, last, zone).await.unwrap();
        assert_eq!(usage.len(), 1);
        assert_eq!((usage[0].0.day(), usage[0].1.kills, usage[0].1.traces), (day, 2, 0), "{zone}");
    }
}

/// However many states it had, also within a batch.
pub async fn a_delivery_is_listed_in_its_latest_state<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now().micros();
    let delivery = |n: i64, state: &str, attempts: u32| Delivery {
        delivery_id: format!("delivery-{n}"),
        webhook_id: format!("action-{n}"),
        endpoint_id: format!("endpoint-{}", n % 2),
        client_id: "app".to_owned(),
        r#type: "panopticon.anomaly_detected".to_owned(),
        body: Bytes::from_static(b"{\"type\":\"panopticon.anomaly_detected\"}"),
        state: state.to_owned(),
        attempts,
        created_at: now - 10_000_000 + n,
        updated_at: now - 9_000_000 + i64::from(attempts),
        next_attempt_at: now,
        last_status: 503,
        last_error: "unavailable".to_owned(),
        last_latency_ms: 12,
        ..Delivery::default()
    };
    let first = [delivery(1, "pending", 0), delivery(2, "pending", 0), delivery(1, "pending", 1)];
    insert(&ports, Topic::WebhookDeliveries, 0, 3, Rows::Deliveries(rows(&first, 0, 1))).await;
    let second = [delivery(1, "delivered", 2), delivery(3, "pending", 0)];
    insert(&ports, Topic::WebhookDeliveries, 3, 5, Rows::Deliveries(rows(&second, 3, 1))).await;

    let found = async |query: EventQuery| ports.store.deliveries(&query).await.unwrap().items;
    let (one, two, three) =
        (delivery(1, "delivered", 2), delivery(2, "pending", 0), delivery(3, "pending", 0));
    assert_eq!(found(all()).await, [three.clone(), two, one.clone()]);
    let of_endpoint = EventQuery { endpoint_id: Some("endpoint-1".to_owned()), ..all() };
    assert_eq!(found(of_endpoint).await, [three, one.clone()]);
    let of_webhook = EventQuery { id: Some("action-1".to_owned()), ..all() };
    assert_eq!(found(of_webhook).await, [one]);
}

/// Of one app, or of everything.
pub async fn audit_entries_are_listed_newest_first<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now().micros();
    let entries: Vec<_> = (0..9)
        .map(|n| AuditEntry {
            audit_id: format!("audit-{n}"),
            at: now - 1_000_000 + n,
            actor: "admin".to_owned(),
            action: "app.enable".to_owned(),
            client_id: if n % 3 == 0 { String::new() } else { format!("app-{}", n % 3) },
            target: "target".to_owned(),
            detail: "{\"a\":1}".to_owned(),
            request_id: "request".to_owned(),
        })
        .collect();
    insert(&ports, Topic::Audit, 0, 9, Rows::Audit(rows(&entries, 0, 1))).await;
    let page = ports.store.audit(&EventQuery { limit: 4, ..EventQuery::default() }).await.unwrap();
    assert!(page.more);
    assert_eq!(page.items, entries.iter().rev().take(4).cloned().collect::<Vec<_>>());
    let of_app = EventQuery { client_id: Some(client("app-1")), ..all() };
    let found = ports.store.audit(&of_app).await.unwrap().items;
    assert_eq!(
        found.iter().map(|e| e.audit_id.as_str()).collect::<Vec<_>>(),
        ["audit-7", "audit-4", "audit-1"]
    );
}

/// Batches of events are exactly-once as those of traces are.
pub async fn events_are_in_once_however_often_they_are_sent<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now().micros();
    let entry = |n: i64| AuditEntry { audit_id: format!("audit-{n}"), at: now + n, ..AuditEntry::default() };
    let detections: Vec<_> = (0..5).map(|n| detection(n, "app", now + n as i64)).collect();
    let audit: Vec<_> = (0..5).map(entry).collect();
    for attempt in [Attempt::First, Attempt::Again] {
        let range = ports.range(Topic::Detections, 0, 0, 5).await;
        ports.store.insert(range, Rows::Detections(rows(&detections, 0, 1)), attempt).await.unwrap();
        let range = ports.range(Topic::Audit, 0, 0, 5).await;
        ports.store.insert(range, Rows::Audit(rows(&audit, 0, 1)), attempt).await.unwrap();
    }
    assert_eq!(ports.store.detections(&all()).await.unwrap().items.len(), 5);
    assert_eq!(ports.store.audit(&all()).await.unwrap().items.len(), 5);
}
