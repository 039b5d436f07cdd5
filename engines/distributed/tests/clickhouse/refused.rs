//! Rows that cannot be taken hurt no other.

use panopticon_core::{store::Attempt, time::Time};

use crate::fixture::{Fixture, now, rows, sums};

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_table_can_hold_is_answered_and_the_others_are_in() {
    let Some(f) = Fixture::new().await else { return };
    let mut batch = rows(0, 100, now());
    batch[7].value.trace.started_at = Time::from_micros(i64::MAX);
    let good: Vec<_> =
        batch.iter().enumerate().filter(|(n, _)| *n != 7).map(|(_, row)| row.clone()).collect();
    for attempt in [Attempt::First, Attempt::Again] {
        let refused = f.try_traces(0, 0, &batch, attempt).await.unwrap();
        assert_eq!(refused.iter().map(|row| (row.offset, row.index)).collect::<Vec<_>>(), [(2, 1)]);
        assert!(refused[0].error.contains("started_at"), "{refused:?}");
        assert_eq!(f.counts().await, sums(&good));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_server_refuses_are_found_and_the_others_are_in() {
    let Some(f) = Fixture::new().await else { return };
    f.sql("ALTER TABLE traces ADD CONSTRAINT no_poison CHECK session_id != 'poison'").await;
    for (partition, attempts) in [(0, vec![Attempt::First, Attempt::Again]), (1, vec![Attempt::Again])] {
        let mut batch = rows(0, 100, now());
        batch[13].value.trace.session_id = "poison".into();
        batch[98].value.trace.session_id = "poison".into();
        for attempt in attempts {
            let refused = f.try_traces(partition, 0, &batch, attempt).await.unwrap();
            let places: Vec<_> = refused.iter().map(|row| (row.offset, row.index)).collect();
            assert_eq!(places, [(4, 1), (32, 2)]);
            assert!(refused[0].error.contains("no_poison"), "{refused:?}");
        }
    }
    assert_eq!(f.counts().await[..3], [196, 196, 196]);
}
