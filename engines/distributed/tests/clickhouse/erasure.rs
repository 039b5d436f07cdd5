//! A person taken out of the tables, as people who ask in SQL see it.

use panopticon_core::{
    erasure::{Erasure, TracesEnd},
    store::{Attempt, TraceStore as _},
};

use crate::fixture::{Fixture, app, now, rows, sums};

const PERSON: &str = "user_1";

fn erasure(f: &Fixture, pseudonym: &str, offset: u64) -> Erasure {
    Erasure {
        client_id: app(),
        user_sub: PERSON.to_owned(),
        pseudonym: pseudonym.to_owned(),
        until: TracesEnd { log_id: f.log_id, partition: 0, offset },
    }
}

/// Traces counted by day for a user, in the view that analysts ask.
async fn usage_of(f: &Fixture, user: &str) -> u64 {
    f.count(&format!("(SELECT sum(traces) FROM usage_by_user_day WHERE user_sub = '{user}')")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn analysts_see_the_pseudonym_and_no_statement_that_is_kept_names_the_person() {
    let Some(f) = Fixture::new().await else { return };
    let rows = rows(0, 90, now());
    f.traces(0, 0, &rows, Attempt::First).await;
    let before = f.counts().await;
    assert_eq!(before, sums(&rows));
    f.store.erase(&erasure(&f, "erased-1", 30)).await.unwrap();
    assert_eq!((usage_of(&f, "erased-1").await, usage_of(&f, PERSON).await), (30, 0));
    assert_eq!(f.count(&format!("(SELECT count() FROM usage_15m WHERE user_sub = '{PERSON}')")).await, 0);
    let [traces, rest @ ..] = f.counts().await;
    assert_eq!((traces, rest.as_slice()), (before[0] - 30, &before[1..]));
    let named = format!(
        "(SELECT countIf(position(command, '{PERSON}') > 0) FROM system.mutations WHERE database = currentDatabase())"
    );
    assert_eq!(f.count(&named).await, 0);
    let mutations = "(SELECT count() FROM system.mutations WHERE database = currentDatabase())";
    assert!(f.count(mutations).await > 0, "the look above looked at something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_ended_between_its_steps_is_finished_by_the_next() {
    let Some(f) = Fixture::new().await else { return };
    let rows = rows(0, 90, now());
    f.traces(0, 0, &rows, Attempt::First).await;
    let before = f.counts().await;
    // The first call has come as far as bringing in the rows that count for the pseudonym and take back.
    f.sql(&format!(
        "INSERT INTO usage_15m SELECT client_id, bucket, side.1, tool, scope_used, status,
             if(side.2, n, bitNot(n) + 1), if(side.2, ms, bitNot(ms) + 1), 0, 0, 0
         FROM (SELECT client_id, bucket, tool, scope_used, status, sum(traces) AS n, sum(duration_ms) AS ms
               FROM usage_15m WHERE user_sub = '{PERSON}' GROUP BY ALL)
         ARRAY JOIN [('{PERSON}', false), ('erased-0', true)] AS side"
    ))
    .await;
    f.sql("OPTIMIZE TABLE usage_15m FINAL").await;
    assert_eq!(f.counts().await, before, "both sides of each count");
    let erased = f.store.erase(&erasure(&f, "erased-1", 30)).await.unwrap();
    assert_eq!((erased.traces, erased.usage, erased.usage_left), (30, 0, 0));
    assert_eq!(f.counts().await[1..], before[1..]);
    assert_eq!((usage_of(&f, "erased-0").await, usage_of(&f, PERSON).await), (30, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_goes_on_is_not_counted_twice_when_a_batch_is_settled() {
    let Some(f) = Fixture::new().await else { return };
    let (old, new) = (rows(0, 45, now()), rows(15, 45, now()));
    f.traces(0, 0, &old, Attempt::First).await;
    f.traces(0, 15, &new, Attempt::First).await;
    f.sql("OPTIMIZE TABLE usage_15m FINAL").await;
    let before = f.counts().await;
    // The second batch is in, but its position is not committed: its sender may not know.
    let erased = f.store.erase(&erasure(&f, "erased-1", 15)).await.unwrap();
    assert!(erased.traces == 15 && erased.usage_left > 0, "{erased:?}");
    f.traces(0, 15, &new, Attempt::Again).await;
    let [traces, rest @ ..] = f.counts().await;
    assert_eq!((traces, rest.as_slice()), (before[0] - 15, &before[1..]));
    f.sql("OPTIMIZE TABLE usage_15m FINAL").await;
    let erased = f.store.erase(&erasure(&f, "erased-1", 30)).await.unwrap();
    assert_eq!((erased.traces, erased.usage_left), (15, 0));
    assert_eq!((usage_of(&f, "erased-1").await, usage_of(&f, PERSON).await), (30, 0));
    assert_eq!(f.counts().await[1..], before[1..]);
}
