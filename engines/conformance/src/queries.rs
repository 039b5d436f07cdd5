//! The trace store: timelines, look-ups, usage by zone, retention.

use std::time::Duration;

use futures::StreamExt as _;
use jiff::civil::Date;
use panopticon_core::{
    store::{Activity, PART_ROWS, StoreError, TimelineCursor, TimelineQuery, Whose},
    time::Time,
    trace::{AcceptedTrace, Status},
};

use crate::{
    EngineUnderTest, Ports,
    fixtures::{client, event, put_traces, trace},
};

const DAY: Duration = Duration::from_secs(86_400);

fn time(text: &str) -> Time {
    Time::parse_rfc3339(text).unwrap()
}

async fn pages(ports: &Ports, query: &TimelineQuery) -> Vec<AcceptedTrace> {
    let (mut query, mut all) = (query.clone(), Vec::new());
    loop {
        let page = ports.store.timeline(&client("app"), &query).await.unwrap();
        assert!(page.items.len() <= query.limit as usize);
        let last = page
            .items
            .last()
            .map(|last| TimelineCursor { started_at: last.trace.started_at, event_id: last.trace.event_id });
        all.extend(page.items);
        if !page.more {
            return all;
        }
        query.after = last;
    }
}

/// Also where many traces began at the same time.
pub async fn a_timeline_is_newest_first_and_pages_have_no_gap_and_no_repeat<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let traces: Vec<_> = (0..100)
        .map(|n| {
            let started_at = Time::from_micros(now.micros() - (n as i64 % 4) * 1_000_000);
            trace(&client(if n % 10 == 9 { "other" } else { "app" }), n, started_at, now)
        })
        .collect();
    put_traces(&ports, 0, &traces).await;
    let mut wanted: Vec<_> = traces
        .iter()
        .filter(|trace| trace.trace.client_id.as_str() == "app")
        .map(|trace| (trace.trace.started_at, trace.trace.event_id))
        .collect();
    wanted.sort_unstable_by(|a, b| b.cmp(a));
    for limit in [1, 7, 90, 91, 1_000] {
        let query = TimelineQuery { limit, ..TimelineQuery::default() };
        let found: Vec<_> = pages(&ports, &query)
            .await
            .iter()
            .map(|trace| (trace.trace.started_at, trace.trace.event_id))
            .collect();
        assert_eq!(found, wanted, "{limit} a page");
    }
}

/// Alone and together; both ends of the time are included.
pub async fn a_timeline_shows_what_its_filters_let_through<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let at = |n: u128| Time::from_micros(now.micros() - (n as i64) * 1_000_000);
    let traces: Vec<_> = (0..60).map(|n| trace(&client("app"), n, at(n), now)).collect();
    put_traces(&ports, 0, &traces).await;
    let all = TimelineQuery { limit: 7, ..TimelineQuery::default() };
    let queries = [
        TimelineQuery { since: Some(at(20)), until: Some(at(10)), ..all.clone() },
        TimelineQuery { user_sub: Some("user_1".to_owned()), ..all.clone() },
        TimelineQuery { tool: Some("tool_3".to_owned()), ..all.clone() },
        TimelineQuery { status: Some(Status::Denied), ..all.clone() },
        TimelineQuery {
            since: Some(at(50)),
            user_sub: Some("user_2".to_owned()),
            tool: Some("tool_1".to_owned()),
            status: Some(Status::Error),
            ..all.clone()
        },
        TimelineQuery { user_sub: Some("nobody".to_owned()), ..all.clone() },
        TimelineQuery { user_sub: Some("user_1' OR 1=1 --".to_owned()), ..all },
    ];
    for query in queries {
        let lets_through = |trace: &&AcceptedTrace| {
            let trace = &trace.trace;
            query.since.is_none_or(|since| trace.started_at >= since)
                && query.until.is_none_or(|until| trace.started_at <= until)
                && query.user_sub.as_ref().is_none_or(|user| trace.user_sub == *user)
                && query.tool.as_ref().is_none_or(|tool| trace.tool == *tool)
                && query.status.is_none_or(|status| trace.status == status)
        };
        let wanted: Vec<_> = traces.iter().filter(lets_through).map(|trace| trace.trace.event_id).collect();
        let found: Vec<_> = pages(&ports, &query).await.iter().map(|trace| trace.trace.event_id).collect();
        assert_eq!(found, wanted, "{query:?}");
    }
}

async fn arrivals(ports: &Ports, since: Time, until: Time) -> Vec<AcceptedTrace> {
    let mut parts = ports.store.arrivals(&client("app"), since, until);
    let mut all = Vec::new();
    while let Some(part) = parts.next().await {
        let part = part.unwrap();
        assert!((1..=PART_ROWS).contains(&part.len()));
        all.extend(part);
    }
    all
}

/// Whenever they began, and in whichever order they were stored; both ends of the time are included. Those
/// received at the same time come in the order of the log.
pub async fn traces_arrive_again_in_the_order_in_which_they_were_received<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let second = |n: u128| Time::from_micros(now.micros() - (n as i64) * 1_000_000);
    // More than a part; what was received last is stored first, and what began last was received first.
    let count = PART_ROWS as u128 + 1_000;
    let made: Vec<_> = (0..count)
        .map(|n| {
            trace(&client(if n % 10 == 9 { "other" } else { "app" }), n, second(count - n), second(n / 4))
        })
        .collect();
    put_traces(&ports, 0, &made).await;
    let mut wanted: Vec<&AcceptedTrace> =
        made.iter().filter(|t| t.trace.client_id.as_str() == "app").collect();
    wanted.sort_by_key(|trace| trace.received_at);
    let all = arrivals(&ports, Time::EPOCH, now).await;
    assert_eq!(all.iter().collect::<Vec<_>>(), wanted);

    let (since, until) = (second(200), second(100));
    wanted.retain(|trace| (since..=until).contains(&trace.received_at));
    let some = arrivals(&ports, since, until).await;
    assert_eq!(some.iter().collect::<Vec<_>>(), wanted);
    assert!(arrivals(&ports, Time::EPOCH, second(count)).await.is_empty());
}

/// In the order of time, for each user or tool.
async fn activity(ports: &Ports, whose: Whose, since: Time, until: Time) -> Vec<Activity> {
    let mut parts = ports.store.activity(whose, since, until);
    let mut all = Vec::new();
    while let Some(part) = parts.next().await {
        let part = part.unwrap();
        assert!((1..=PART_ROWS).contains(&part.len()));
        all.extend(part);
    }
    all.sort_by(|a, b| (&a.client_id, &a.name).cmp(&(&b.client_id, &b.name)));
    all
}

/// Of all apps; calls without a user are those of one. A quarter of an hour counts when it has ended.
pub async fn the_activity_of_users_and_of_tools_is_told_by_quarters_of_an_hour<E: EngineUnderTest>(
    engine: E,
) {
    let ports = engine.ports();
    let now = ports.now();
    let calls = [
        ("app", "a", "one", "2026-03-01T08:59:59Z"),
        ("app", "a", "one", "2026-03-01T09:00:00Z"),
        ("app", "b", "one", "2026-03-01T09:14:59Z"),
        ("app", "a", "two", "2026-03-01T09:14:59Z"),
        ("app", "", "one", "2026-03-01T09:10:00Z"),
        ("other", "a", "one", "2026-03-01T09:15:00Z"),
        ("app", "a", "one", "2026-03-01T09:30:00Z"),
        ("app", "a", "one", "2026-03-01T09:45:00Z"),
    ];
    let traces: Vec<_> = calls
        .iter()
        .zip(0..)
        .map(|((app, user, tool, at), n)| {
            let mut trace = trace(&client(app), n, time(at), now);
            (trace.trace.user_sub, trace.trace.tool) = ((*user).to_owned(), (*tool).to_owned());
            trace.trace.status = if n == 3 { Status::Denied } else { Status::Ok };
            trace
        })
        .collect();
    put_traces(&ports, 0, &traces).await;
    let told = async |whose| {
        let all = activity(&ports, whose, time("2026-03-01T09:00:00Z"), time("2026-03-01T09:46:00Z")).await;
        let text = |Activity { client_id, name, since, traces, denied }: &Activity| {
            format!("{client_id} {name} {} {traces} {denied}", &since.to_string()[11..16])
        };
        all.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(
        told(Whose::Users).await,
        ["app  09:00 1 0", "app a 09:00 2 1", "app a 09:30 1 0", "app b 09:00 1 0", "other a 09:15 1 0"]
    );
    assert_eq!(
        told(Whose::Tools).await,
        ["app one 09:00 3 0", "app one 09:30 1 0", "app two 09:00 1 1", "other one 09:15 1 0"]
    );
}

/// However many there are in one quarter of an hour.
pub async fn activity_comes_in_parts_and_each_user_once<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let users = PART_ROWS as u128 + 10;
    let traces: Vec<_> = (0..2 * users)
        .map(|n| {
            let mut trace = trace(&client("app"), n, now.minus(DAY), now);
            trace.trace.user_sub = format!("user_{}", n % users);
            trace
        })
        .collect();
    put_traces(&ports, 0, &traces).await;
    let all = activity(&ports, Whose::Users, Time::EPOCH, now).await;
    assert_eq!(all.len() as u128, users);
    assert!(all.iter().all(|one| one.traces == 2));
}

/// Two apps may use the same event id.
pub async fn a_trace_is_found_by_its_id_and_known_by_app_and_id<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let (one, two) = (client("app-1"), client("app-2"));
    let mut traces: Vec<_> = (0..50).map(|n| trace(&one, n, now, now)).collect();
    traces.push(trace(&two, 7, now, now));
    put_traces(&ports, 0, &traces).await;

    let mut apps: Vec<_> = ports.store.find(event(7)).await.unwrap();
    apps.sort_by(|a, b| a.trace.client_id.cmp(&b.trace.client_id));
    assert_eq!(apps.iter().map(|t| t.trace.client_id.as_str()).collect::<Vec<_>>(), ["app-1", "app-2"]);
    assert!(apps.iter().all(|found| found.trace.event_id == event(7)));
    assert!(ports.store.find(event(1_000)).await.unwrap().is_empty());

    let asked = [(&one, 1), (&two, 1), (&two, 7), (&one, 49), (&one, 50)];
    let asked = asked.map(|(app, n)| (app.clone(), event(n)));
    assert_eq!(ports.store.known(&asked).await.unwrap(), [true, false, true, true, false]);
    assert_eq!(ports.store.known(&[]).await.unwrap(), [] as [bool; 0]);
}

/// Days are as long as they are there, also when clocks change; dates without figures are left out.
pub async fn usage_goes_by_days_of_the_zone<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let started = [
        "2026-03-27T22:59:59Z", // Berlin: 27th, 23:59:59
        "2026-03-27T23:00:00Z", // 28th, 00:00
        "2026-03-28T22:59:59Z", // 28th
        "2026-03-28T23:00:00Z", // 29th, the day of 23 hours
        "2026-03-29T21:59:59Z", // 29th, 23:59:59 in summer time
        "2026-03-29T22:00:00Z", // 30th
        "2026-03-31T12:00:00Z", // 31st
    ];
    let traces: Vec<_> =
        started.iter().zip(0..).map(|(at, n)| trace(&client("app"), n * 4, time(at), now)).collect();
    put_traces(&ports, 0, &traces).await;
    let date = |day| Date::constant(2026, 3, day);
    let usage = async |since, until, zone: &str| {
        let usage = ports.store.usage(&client("app"), date(since), date(until), zone).await.unwrap();
        usage.into_iter().map(|(date, counts)| (date.day(), counts.traces)).collect::<Vec<_>>()
    };
    assert_eq!(usage(27, 31, "Europe/Berlin").await, [(27, 1), (28, 2), (29, 2), (30, 1), (31, 1)]);
    assert_eq!(usage(28, 29, "Europe/Berlin").await, [(28, 2), (29, 2)]);
    assert_eq!(usage(27, 31, "UTC").await, [(27, 2), (28, 2), (29, 2), (31, 1)]);
    // A quarter of an hour matters: UTC+05:45.
    assert_eq!(usage(1, 31, "Asia/Kathmandu").await, [(28, 2), (29, 2), (30, 2), (31, 1)]);
    assert_eq!(usage(30, 30, "UTC").await, []);
}

/// With a text that a person understands.
pub async fn an_unknown_zone_is_refused<E: EngineUnderTest>(engine: E) {
    let day = Date::constant(2026, 3, 1);
    let refused = engine.ports().store.usage(&client("app"), day, day, "Mars/Olympus").await;
    assert!(matches!(&refused, Err(StoreError::Broken(why)) if why.contains("Mars/Olympus")), "{refused:?}");
}

/// Of the app alone, whenever its calls began.
pub async fn the_latest_receipt_of_an_app_is_known<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let before = Time::from_micros(now.micros() - 5_000_000);
    let old = time("2020-01-01T00:00:00Z");
    let traces = [
        trace(&client("app"), 1, before, before),
        trace(&client("app"), 2, old, now),
        trace(&client("other"), 3, before, before),
    ];
    put_traces(&ports, 0, &traces).await;
    assert_eq!(ports.store.last_received(&client("app")).await.unwrap(), Some(now));
    assert_eq!(ports.store.last_received(&client("other")).await.unwrap(), Some(before));
    assert_eq!(ports.store.last_received(&client("nobody")).await.unwrap(), None);
}

/// Raw rows go 90 days after they were received, wherever they would be shown; figures stay for good.
pub async fn no_row_is_shown_past_its_time_and_usage_stays<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let app = client("app");
    let started_at = time("2026-03-01T12:00:00Z");
    let traces: Vec<_> = (0..20)
        .map(|n| {
            let received_at = if n < 10 { now.minus(DAY * 30) } else { now };
            trace(&app, n, started_at, received_at)
        })
        .collect();
    put_traces(&ports, 0, &traces).await;
    let query = TimelineQuery { limit: 100, ..TimelineQuery::default() };
    let known = [(app.clone(), event(1)), (app.clone(), event(11))];
    let date = Date::constant(2026, 3, 1);
    for (days, shown) in [(59, 20), (2, 10), (31, 0)] {
        engine.let_time_pass(DAY * days).await;
        let check = async |when: &str| {
            assert_eq!(ports.store.timeline(&app, &query).await.unwrap().items.len(), shown, "{when}");
            assert_eq!(arrivals(&ports, Time::EPOCH, ports.now()).await.len(), shown, "{when}");
            assert_eq!(ports.store.find(event(1)).await.unwrap().len(), usize::from(shown > 10), "{when}");
            let wanted = [shown > 10, shown > 0];
            assert_eq!(ports.store.known(&known).await.unwrap(), wanted, "{when}");
            let usage = ports.store.usage(&app, date, date, "UTC").await.unwrap();
            assert_eq!(usage[0].1.traces, 20, "{when}");
        };
        check("before it is deleted").await;
        ports.store.expire(ports.now()).await.unwrap();
        check("after").await;
    }
}
