//! Figures per date.

use panopticon_core::{
    proto::log::{GuardAction, KillSwitch},
    store::{Attempt, Row, Rows, TraceStore, UsageCounts},
    time::Time,
    topic::Topic,
    trace::AcceptedTrace,
};

use crate::fixture::{Fixture, app, trace};

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_by_the_days_of_the_zone() {
    let Some(f) = Fixture::new().await else { return };
    // 23:50 UTC on the 1st is the 2nd in Tokyo and in Kathmandu (UTC+5:45), still the 1st in Berlin in winter
    // but for the last quarter.
    let at = |text: &str| Time::parse_rfc3339(text).unwrap();
    let rows: Vec<Row<AcceptedTrace>> =
        ["2026-01-01T18:10:00Z", "2026-01-01T18:20:00Z", "2026-01-01T23:50:00Z", "2026-01-02T00:10:00Z"]
            .iter()
            .enumerate()
            .map(|(n, time)| Row { offset: n as u64, index: 0, value: trace(n as u64, at(time)) })
            .collect();
    f.traces(0, 0, &rows, Attempt::First).await;
    let kill = |n: u64, state: &str, time: &str| Row {
        offset: n,
        index: 0,
        value: GuardAction {
            action_id: format!("a{n}"),
            r#type: "panopticon.kill_switch".into(),
            client_id: app().to_string(),
            created_at: at(time).micros(),
            kill: Some(KillSwitch { state: state.into(), ..Default::default() }),
            ..Default::default()
        },
    };
    let mut asked = kill(2, "", "2026-01-03T12:00:00Z");
    asked.value.r#type = "panopticon.approval_requested".into();
    let actions =
        vec![kill(0, "killed", "2026-01-01T23:55:00Z"), kill(1, "lifted", "2026-01-01T23:56:00Z"), asked];
    let range = f.range(Topic::GuardActions, 0, 0, 3);
    f.store.insert(range, Rows::GuardActions(actions), Attempt::First).await.unwrap();

    let usage = async |since: &str, until: &str, zone: &str| -> Vec<(String, [u64; 4])> {
        let (since, until) = (since.parse().unwrap(), until.parse().unwrap());
        let usage = f.store.usage(&app(), since, until, zone).await.unwrap();
        let flat = |c: UsageCounts| [c.traces, c.errors, c.hitl_requests, c.kills];
        usage.into_iter().map(|(date, counts)| (date.to_string(), flat(counts))).collect()
    };
    let day = |date: &str, counts| (format!("2026-01-{date}"), counts);
    assert_eq!(
        usage("2026-01-01", "2026-01-03", "UTC").await,
        [day("01", [3, 2, 0, 1]), day("02", [1, 0, 0, 0]), day("03", [0, 0, 1, 0])]
    );
    assert_eq!(usage("2026-01-01", "2026-01-01", "Etc/UTC").await, [day("01", [3, 2, 0, 1])]);
    assert_eq!(
        usage("2025-12-31", "2026-01-31", "Asia/Kathmandu").await,
        [day("01", [1, 0, 0, 0]), day("02", [3, 2, 0, 1]), day("03", [0, 0, 1, 0])]
    );
    assert_eq!(usage("2026-01-02", "2026-01-02", "Europe/Berlin").await, [day("02", [2, 1, 0, 1])]);
    assert_eq!(usage("1900-01-01", "9999-12-31", "America/New_York").await.len(), 2);
    let dates = ("2026-01-01".parse().unwrap(), "2026-01-01".parse().unwrap());
    assert!(f.store.usage(&app(), dates.0, dates.1, "Mars/Olympus").await.is_err());
}
