//! How long things take; printed, not judged: machines differ.

use std::time::{Duration, Instant};

use panopticon_core::{log::EventLog, topic::Topic};

use crate::bed::{Bed, STAGE, commit_next, lease, output, take};

fn summary(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!("{what}: median {:.1} ms, p95 {:.1} ms, max {:.1} ms", at(50), at(95), at(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_appends_commits_and_joins_take() {
    let begin = Instant::now();
    let Some(bed) = Bed::new(1).await else { return };
    println!("migrate and connect: {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    let mut times = Vec::new();
    for i in 0..200 {
        let begin = Instant::now();
        bed.append(Topic::TracesRaw, 0, &format!("{i}")).await;
        times.push(begin.elapsed());
    }
    summary("append", times.split_off(1));
    let mut times = Vec::new();
    for _ in 0..20 {
        let begin = Instant::now();
        bed.texts(Topic::TracesRaw, 0).await;
        times.push(begin.elapsed());
    }
    summary("bounds and read of 200", times);
    let begin = Instant::now();
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    println!("join to lease: {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    let (mut both, mut polls) = (Vec::new(), Vec::new());
    for i in 0..100 {
        let begin = Instant::now();
        let records = take(&mut *lease, 1).await;
        polls.push(begin.elapsed());
        let begin = Instant::now();
        commit_next(&mut *lease, records[0].offset + 1, vec![output(Topic::Traces, 0, &format!("{i}"))])
            .await
            .unwrap();
        both.push(begin.elapsed());
    }
    summary("poll of a waiting record", polls);
    summary("commit of an output and the position, back to back", both.split_off(1));
    let mut spaced = Vec::new();
    for i in 0..50 {
        let records = take(&mut *lease, 1).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        let begin = Instant::now();
        commit_next(&mut *lease, records[0].offset + 1, vec![output(Topic::Traces, 0, &format!("{i}"))])
            .await
            .unwrap();
        spaced.push(begin.elapsed());
    }
    summary("the same, 30 ms apart", spaced.split_off(1));
    let mut trips = Vec::new();
    while take(&mut *lease, 1).await[0].offset < 199 {}
    for i in 0..50 {
        let text = format!("trip {i}");
        let begin = Instant::now();
        let (offset, records) = tokio::join!(bed.append(Topic::TracesRaw, 0, &text), take(&mut *lease, 1));
        assert_eq!(records[0].offset, offset);
        trips.push(begin.elapsed());
    }
    summary("from the append to the poll", trips);
}
