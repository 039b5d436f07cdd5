//! Traces come back, by app, filter and id.

use std::sync::atomic::Ordering;

use panopticon_core::{
    ids::{ClientId, EventId},
    store::{Attempt, Row, TimelineCursor, TimelineQuery, TraceStore},
    trace::{AcceptedTrace, Status},
};
use uuid::Uuid;

use crate::fixture::{Fixture, app, now, rows, sums, trace};

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_reads_back_as_it_was_stored() {
    let Some(f) = Fixture::new().await else { return };
    let rows = rows(0, 7, now());
    f.traces(0, 0, &rows, Attempt::First).await;
    let page = f.store.timeline(&app(), &TimelineQuery { limit: 100, ..Default::default() }).await.unwrap();
    let stored: Vec<AcceptedTrace> = rows.iter().rev().map(|row| row.value.clone()).collect();
    assert_eq!(page.items, stored);
    assert!(!page.more);
    assert_eq!(f.store.find(stored[0].trace.event_id).await.unwrap(), [stored[0].clone()]);
    assert_eq!(f.store.find(EventId(Uuid::nil())).await.unwrap(), []);
    assert_eq!(f.store.last_received(&app()).await.unwrap(), Some(stored[0].received_at));
    assert_eq!(f.store.last_received(&ClientId::new("other").unwrap()).await.unwrap(), None);
    let other = ClientId::new("other").unwrap();
    let asked = [
        (app(), stored[3].trace.event_id),
        (other, stored[3].trace.event_id),
        (app(), EventId(Uuid::nil())),
        (app(), stored[0].trace.event_id),
    ];
    assert_eq!(f.store.known(&asked).await.unwrap(), [true, false, false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_pages_without_gaps_even_among_equal_times() {
    let Some(f) = Fixture::new().await else { return };
    let at = now();
    let rows: Vec<Row<AcceptedTrace>> =
        (0..50).map(|n| Row { offset: n, index: 0, value: trace(n, at) }).collect();
    f.traces(0, 0, &rows, Attempt::First).await;
    let mut seen = Vec::new();
    let mut query = TimelineQuery { limit: 7, ..Default::default() };
    loop {
        let page = f.store.timeline(&app(), &query).await.unwrap();
        seen.extend(page.items.iter().map(|item| item.trace.event_id));
        let Some(last) = page.items.last() else { break };
        query.after =
            Some(TimelineCursor { started_at: last.trace.started_at, event_id: last.trace.event_id });
        if !page.more {
            break;
        }
    }
    let mut wanted: Vec<EventId> = rows.iter().map(|row| row.value.trace.event_id).collect();
    wanted.sort();
    wanted.reverse();
    assert_eq!(seen, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_is_narrowed_by_its_filters() {
    let Some(f) = Fixture::new().await else { return };
    let rows = rows(0, 30, now());
    f.traces(0, 0, &rows, Attempt::First).await;
    let count = async |query: TimelineQuery| {
        let query = TimelineQuery { limit: 100, ..query };
        f.store.timeline(&app(), &query).await.unwrap().items.len()
    };
    assert_eq!(count(TimelineQuery { user_sub: Some("user_1".into()), ..Default::default() }).await, 10);
    let tool = Some("tool \u{1f980} '1'".into());
    assert_eq!(count(TimelineQuery { tool, ..Default::default() }).await, 15);
    assert_eq!(count(TimelineQuery { status: Some(Status::Denied), ..Default::default() }).await, 10);
    let at = |n: usize| Some(rows[n].value.trace.started_at);
    assert_eq!(count(TimelineQuery { since: at(10), until: at(12), ..Default::default() }).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_past_their_time_are_not_shown_but_stay_counted() {
    let Some(f) = Fixture::new().await else { return };
    let rows = rows(0, 9, now());
    f.traces(0, 0, &rows, Attempt::First).await;
    f.clock.0.store(91 * 86_400 * 1_000_000, Ordering::SeqCst);
    let page = f.store.timeline(&app(), &TimelineQuery { limit: 100, ..Default::default() }).await.unwrap();
    assert!(page.items.is_empty());
    let id = rows[0].value.trace.event_id;
    assert!(f.store.find(id).await.unwrap().is_empty());
    assert_eq!(f.store.known(&[(app(), id)]).await.unwrap(), [false]);
    assert_eq!(f.counts().await, sums(&rows));
}
