//! Raw rows go by themselves, what was counted stays. The server has a clock of its own, so it is the rows that
//! are old here.

use std::time::Duration;

use panopticon_core::{
    proto::log::Delivery,
    store::{Attempt, EventQuery, Row, Rows, TimelineQuery, TraceStore},
    topic::Topic,
    trace::AcceptedTrace,
};

use crate::fixture::{Fixture, app, now, numbered, rows, sums};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test(flavor = "multi_thread")]
async fn rows_older_than_90_days_are_hidden_at_once_and_merged_away_while_their_counts_stay() {
    let Some(f) = Fixture::new().await else { return };
    // Merges only when the test says so: the time between insert and merge is what is looked at.
    f.sql("SYSTEM STOP MERGES traces").await;
    f.sql("SYSTEM STOP MERGES webhook_deliveries").await;
    let day_ago = |days| now().minus(DAY * days);
    let batches = [rows(0, 9, day_ago(91)), rows(100, 12, day_ago(89)), rows(200, 6, now())];
    for batch in &batches {
        f.traces(0, batch[0].offset, batch, Attempt::First).await;
    }
    let all: Vec<Row<AcceptedTrace>> = batches.concat();
    let deliveries = [91, 89].map(|days| Delivery {
        delivery_id: format!("{days} days old"),
        client_id: app().to_string(),
        created_at: day_ago(days).micros(),
        body: "{}".into(),
        ..Default::default()
    });
    let range = f.range(Topic::WebhookDeliveries, 0, 0, 2);
    f.store.insert(range, Rows::Deliveries(numbered(deliveries.to_vec())), Attempt::First).await.unwrap();

    let (old, young) = (&batches[0][0].value.trace, &batches[1][0].value.trace);
    let check = async |when: &str| {
        let timeline = TimelineQuery { limit: 100, ..Default::default() };
        let shown = f.store.timeline(&app(), &timeline).await.unwrap().items.len();
        assert_eq!(shown, all.len() - batches[0].len(), "{when}");
        assert!(f.store.find(old.event_id).await.unwrap().is_empty(), "{when}");
        assert_eq!(f.store.find(young.event_id).await.unwrap().len(), 1, "{when}");
        let asked = [(app(), old.event_id), (app(), young.event_id)];
        assert_eq!(f.store.known(&asked).await.unwrap(), [false, true], "{when}");
        let events = EventQuery { client_id: Some(app()), limit: 9, ..Default::default() };
        let deliveries = f.store.deliveries(&events).await.unwrap().items;
        let ids: Vec<_> = deliveries.iter().map(|delivery| delivery.delivery_id.as_str()).collect();
        assert_eq!(ids, ["89 days old"], "{when}");
        // The counts are of every row that ever was.
        assert_eq!(f.counts().await[1..], sums(&all)[1..], "{when}");
    };
    assert_eq!(f.counts().await[0], all.len() as u64, "all are in the table");
    assert_eq!(f.count("(SELECT count() FROM webhook_deliveries)").await, 2);
    check("before the merge").await;

    for table in ["traces", "webhook_deliveries", "usage_15m", "usage_daily"] {
        f.sql(&format!("SYSTEM START MERGES {table}")).await;
        f.sql(&format!("OPTIMIZE TABLE {table} FINAL")).await;
    }
    assert_eq!(f.counts().await[0], (all.len() - batches[0].len()) as u64, "the old ones are gone");
    assert_eq!(f.count("(SELECT count() FROM webhook_deliveries)").await, 1);
    check("after the merge").await;
}
