//! The trace store: a person is taken out.

use std::time::Duration;

use bytes::Bytes;
use panopticon_core::{
    erasure::{ErasedCounts, Erasure, TracesEnd},
    ids::EventId,
    proto::log::{Delivery, Detection, GuardAction, KillSwitch},
    store::{Attempt, EventQuery, Rows, TimelineQuery, UsageCounts},
    topic::Topic,
    trace::AcceptedTrace,
};

use crate::{
    EngineUnderTest, Ports,
    fixtures::{client, put_traces, rows, trace},
};

const TRACES: usize = 60;
/// Of user_1 in `app`: every third of the even half.
const OF_PERSON: u64 = 10;

/// Traces of three users in two apps, over some hours; one record each.
fn traces(ports: &Ports) -> Vec<AcceptedTrace> {
    let now = ports.now();
    (0..TRACES as u128)
        .map(|n| {
            let app = client(if n % 2 == 0 { "app" } else { "other" });
            trace(&app, n, now.minus(Duration::from_secs(n as u64 * 600)), now)
        })
        .collect()
}

async fn erasure(ports: &Ports, pseudonym: &str, offset: u64) -> Erasure {
    Erasure {
        client_id: client("app"),
        user_sub: "user_1".to_owned(),
        pseudonym: pseudonym.to_owned(),
        until: TracesEnd { log_id: ports.log_id(Topic::Traces).await, partition: 0, offset },
    }
}

async fn timeline(ports: &Ports, app: &str, user: Option<&str>) -> Vec<EventId> {
    let user_sub = user.map(ToOwned::to_owned);
    let query = TimelineQuery { user_sub, limit: 1_000, ..TimelineQuery::default() };
    let page = ports.store.timeline(&client(app), &query).await.unwrap();
    page.items.iter().map(|trace| trace.trace.event_id).collect()
}

/// An app's figures, by days of UTC and of a zone whose days begin elsewhere.
async fn usage(ports: &Ports, app: &str) -> Vec<UsageCounts> {
    let today = ports.now().to_jiff().to_zoned(jiff::tz::TimeZone::UTC).date();
    let (since, until) = (today.yesterday().unwrap().yesterday().unwrap(), today.tomorrow().unwrap());
    let mut sums = Vec::new();
    for zone in ["UTC", "Asia/Kathmandu"] {
        let days = ports.store.usage(&client(app), since, until, zone).await.unwrap();
        sums.push(days.iter().fold(UsageCounts::default(), |sum, (_, day)| UsageCounts {
            traces: sum.traces + day.traces,
            errors: sum.errors + day.errors,
            ..sum
        }));
    }
    sums
}

/// Also by id, and for nobody else.
pub async fn an_erased_persons_traces_are_gone_and_the_sums_stay<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let traces = traces(&ports);
    put_traces(&ports, 0, &traces).await;
    let before = (usage(&ports, "app").await, usage(&ports, "other").await);
    assert_eq!(before.0[0].traces, TRACES as u64 / 2);

    let erased = ports.store.erase(&erasure(&ports, "erased-1", TRACES as u64).await).await.unwrap();
    assert_eq!(erased, ErasedCounts { traces: OF_PERSON, usage: OF_PERSON, ..ErasedCounts::default() });
    let is_gone =
        |trace: &AcceptedTrace| trace.trace.client_id.as_str() == "app" && trace.trace.user_sub == "user_1";
    for trace in &traces {
        let found = ports.store.find(trace.trace.event_id).await.unwrap().len();
        assert_eq!(found, usize::from(!is_gone(trace)), "{:?}", trace.trace.event_id);
    }
    assert!(timeline(&ports, "app", Some("user_1")).await.is_empty());
    assert_eq!(timeline(&ports, "app", None).await.len() as u64, TRACES as u64 / 2 - OF_PERSON);
    assert_eq!(timeline(&ports, "other", Some("user_1")).await.len() as u64, OF_PERSON);
    assert_eq!((usage(&ports, "app").await, usage(&ports, "other").await), before);
    let gone = traces.iter().find(|trace| is_gone(trace)).unwrap().trace.event_id;
    assert_eq!(ports.store.known(&[(client("app"), gone)]).await.unwrap(), [false]);
}

/// After a crash nobody knows how far it came; a call finds what is left, under whatever pseudonym.
pub async fn erasing_again_changes_nothing<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    put_traces(&ports, 0, &traces(&ports)).await;
    let before = usage(&ports, "app").await;
    ports.store.erase(&erasure(&ports, "erased-1", TRACES as u64).await).await.unwrap();
    let engine = engine.reopen().await;
    let ports = engine.ports();
    for pseudonym in ["erased-1", "erased-2"] {
        let again = erasure(&ports, pseudonym, TRACES as u64).await;
        assert_eq!(ports.store.erase(&again).await.unwrap(), ErasedCounts::default());
        assert_eq!(usage(&ports, "app").await, before);
    }
}

/// The person may still be there: what came after the position is not touched, nor counted twice when its
/// batch is sent again.
pub async fn a_batch_under_way_is_left_alone_by_an_erasure<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let traces = traces(&ports);
    let (old, new) = traces.split_at(TRACES / 2);
    put_traces(&ports, 0, old).await;
    put_traces(&ports, old.len() as u64, new).await;
    let before = usage(&ports, "app").await;
    let erased = ports.store.erase(&erasure(&ports, "erased-1", old.len() as u64).await).await.unwrap();
    assert_eq!(erased.traces, OF_PERSON / 2);
    assert_eq!(timeline(&ports, "app", Some("user_1")).await.len() as u64, OF_PERSON / 2);
    assert_eq!(usage(&ports, "app").await, before);

    let range = ports.range(Topic::Traces, 0, old.len() as u64, TRACES as u64).await;
    let again = Rows::of_traces(rows(new, old.len() as u64, 1));
    ports.store.insert(range, again, Attempt::Again).await.unwrap();
    assert_eq!(timeline(&ports, "app", Some("user_1")).await.len() as u64, OF_PERSON / 2);
    assert_eq!(usage(&ports, "app").await, before);

    // When that is in as well, a later call does the rest.
    let rest = ports.store.erase(&erasure(&ports, "erased-1", TRACES as u64).await).await.unwrap();
    assert_eq!((rest.traces, rest.usage_left), (OF_PERSON / 2, 0));
    assert!(timeline(&ports, "app", Some("user_1")).await.is_empty());
    assert_eq!(usage(&ports, "app").await, before);
}

fn detection(id: &str, app: &str, user: &str, now: i64) -> Detection {
    Detection {
        detection_id: id.to_owned(),
        rule: "burst".to_owned(),
        client_id: app.to_owned(),
        user_sub: user.to_owned(),
        source_ip: "192.0.2.1".to_owned(),
        score: 0.1 + 0.2,
        detected_at: now,
        explanation: format!("{user} made 80 calls"),
        phase: "started".to_owned(),
        ..Detection::default()
    }
}

fn action(id: &str, detection: &Detection, now: i64) -> GuardAction {
    GuardAction {
        action_id: id.to_owned(),
        r#type: "panopticon.anomaly_detected".to_owned(),
        client_id: detection.client_id.clone(),
        user_sub: detection.user_sub.clone(),
        created_at: now,
        detection: Some(detection.clone()),
        ..GuardAction::default()
    }
}

fn delivery(id: &str, action: &GuardAction, state: &str, now: i64) -> Delivery {
    let user = &action.user_sub;
    let body = format!(
        r#"{{"type":"t","data":{{"user_sub":"{user}","explanation":"{user}'s","source_ip":"192.0.2.1"}}}}"#
    );
    Delivery {
        delivery_id: id.to_owned(),
        webhook_id: action.action_id.clone(),
        endpoint_id: "e".to_owned(),
        client_id: action.client_id.clone(),
        user_sub: user.clone(),
        body: Bytes::from(body),
        state: state.to_owned(),
        created_at: now,
        updated_at: now,
        ..Delivery::default()
    }
}

async fn insert(ports: &Ports, topic: Topic, rows: Rows) {
    let range = ports.range(topic, 0, 0, rows.len() as u64).await;
    assert_eq!(ports.store.insert(range, rows, Attempt::First).await.unwrap(), []);
}

/// In every row and every body; other people's stay as they are.
pub async fn an_erased_person_has_a_pseudonym_in_what_happened<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now().micros();
    let people = [("1", "app", "user_1"), ("2", "app", "user_2"), ("3", "other", "user_1")];
    let detections = people.map(|(id, app, user)| detection(id, app, user, now));
    let ended = Detection { phase: "ended".to_owned(), ended_at: now + 1, ..detections[0].clone() };
    let mut actions: Vec<_> = detections.iter().map(|of| action(&of.detection_id, of, now)).collect();
    actions.push(GuardAction {
        action_id: "kill".to_owned(),
        r#type: "panopticon.kill_switch".to_owned(),
        client_id: "app".to_owned(),
        user_sub: "user_1".to_owned(),
        created_at: now + 1,
        kill: Some(KillSwitch {
            client_id: "app".to_owned(),
            user_sub: "user_1".to_owned(),
            state: "killed".to_owned(),
            reason: "user_1 loops".to_owned(),
            actor: "admin".to_owned(),
        }),
        ..GuardAction::default()
    });
    let states = |n: usize, last: &str| {
        let of = |state| delivery(&format!("d{n}"), &actions[n], state, now);
        [of("pending"), of(last)]
    };
    let deliveries =
        [states(0, "delivered"), states(1, "delivered"), states(2, "dead"), states(3, "pending")];
    let all_detections: Vec<_> = detections.iter().cloned().chain([ended.clone()]).collect();
    insert(&ports, Topic::Detections, Rows::Detections(rows(&all_detections, 0, 1))).await;
    insert(&ports, Topic::GuardActions, Rows::GuardActions(rows(&actions, 0, 1))).await;
    insert(&ports, Topic::WebhookDeliveries, Rows::Deliveries(rows(&deliveries.concat(), 0, 1))).await;

    let erasure = erasure(&ports, "erased-1", 0).await;
    let erased = ports.store.erase(&erasure).await.unwrap();
    let wanted = ErasedCounts {
        detections: 2,
        actions: 2,
        deliveries: 4,
        pending_deliveries: 1,
        ..ErasedCounts::default()
    };
    assert_eq!(erased, wanted);

    let query = EventQuery { limit: 100, ..EventQuery::default() };
    let mut found = (
        ports.store.detections(&query).await.unwrap().items,
        ports.store.actions(&query).await.unwrap().items,
        ports.store.deliveries(&query).await.unwrap().items,
    );
    found.0.sort_by(|a, b| a.detection_id.cmp(&b.detection_id));
    found.1.sort_by(|a, b| a.action_id.cmp(&b.action_id));
    found.2.sort_by(|a, b| a.delivery_id.cmp(&b.delivery_id));
    let mut kept = (vec![ended, detections[1].clone(), detections[2].clone()], actions, Vec::new());
    kept.2.extend(deliveries.map(|[_, last]| last));
    kept.0.iter_mut().for_each(|detection| erasure.detection(detection));
    kept.1.iter_mut().for_each(|action| erasure.action(action));
    kept.2.iter_mut().for_each(|delivery| erasure.delivery(delivery));
    assert_eq!(found, kept);
    assert!(!format!("{:?}{:?}{:?}", found.0[0], found.1[0], found.2[0]).contains("user_1"));
    let of_person =
        EventQuery { user_sub: Some("user_1".to_owned()), client_id: Some(client("app")), ..query };
    assert!(ports.store.detections(&of_person).await.unwrap().items.is_empty());
    assert!(ports.store.actions(&of_person).await.unwrap().items.is_empty());
    assert_eq!(ports.store.erase(&erasure).await.unwrap(), ErasedCounts::default());
}
