//! The dedupe stage alone, and what Redis remembers for it.

use crate::{
    Bench,
    backlog::{Backlog, Drained},
    bare::{self, Done, set},
    meter::{self, share},
    report::{Reach, Report, Row},
    server::CLIENT_ID,
    servers::Servers,
};

const PARTITIONS: i32 = 4;
const RATE: f64 = 0.6;
const MEMORY: f64 = 0.45;
/// How long an id is remembered by default.
const SEEN_SECS: u64 = 24 * 3600;

/// Measures rate and memory.
pub async fn measure(report: &mut Report, bench: &Bench) -> anyhow::Result<()> {
    let servers = Servers::from_environment()?;
    let (mut drained, mut same, mut single, mut memory, mut calls) = <_>::default();
    for _ in 0..bench.repeat {
        let before = set::used_memory(&servers.redis_url).await?;
        let backlog = Backlog::fill(bench, PARTITIONS).await?;
        let before_calls = set::script_calls(&servers.redis_url).await?;
        let dedupe = backlog.dedupe(&servers).await?;
        Vec::push(&mut calls, (set::script_calls(&servers.redis_url).await? - before_calls) as f64);
        let used = set::used_memory(&servers.redis_url).await?.saturating_sub(before);
        let plain = set::fill(&servers.redis_url, CLIENT_ID, backlog.traces, SEEN_SECS).await?;
        let traces = backlog.traces as f64;
        Vec::push(&mut memory, (used as f64 / traces, plain as f64 / traces));
        let envelopes = relay(&servers, &backlog, "traces.raw", false).await?;
        Vec::push(&mut same, (dedupe.per_second, envelopes.per_second()));
        let one_each = one_record_a_trace(&servers, bench, &backlog).await?;
        Vec::push(&mut single, (dedupe.per_second, one_each.per_second()));
        Vec::push(&mut drained, dedupe);
        backlog.remove(&servers).await?;
    }
    add(report, bench, &drained, &same, &single, &memory, &calls);
    Ok(())
}

fn add(
    report: &mut Report,
    bench: &Bench,
    drained: &[Drained],
    same: &[(f64, f64)],
    single: &[(f64, f64)],
    memory: &[(f64, f64)],
    calls: &[f64],
) {
    let shares: Vec<_> = drained.iter().map(|drained| drained.shares.clone()).collect();
    let calls = crate::samples::Spread::of(calls.iter().copied()).median;
    let peak = drained.iter().map(|drained| drained.peak_mib).fold(0.0, f64::max);
    let what = "dedupe, one process";
    report.add(
        Row::pairs(what, "consume-transform-produce in transactions, same envelopes", "traces/s", same)
            .reach(Reach::AtLeast(RATE))
            .cpu(meter::medians(&shares))
            .peak(peak)
            .note(format!(
                "{calls:.0} calls of Redis for {} traces; its own CPU {:.2} s a million",
                bench.traces,
                share(&meter::medians(&shares), "dedupe"),
            )),
    );
    report.add(Row::pairs(what, "the same loop, one record a trace", "traces/s", single));
    report.add(
        Row::pairs("Redis memory per remembered trace", "SET key value EX", "bytes", memory)
            .reach(Reach::AtMost(MEMORY)),
    );
}

/// A topic with a record for each trace, and the loop over it.
async fn one_record_a_trace(servers: &Servers, bench: &Bench, backlog: &Backlog) -> anyhow::Result<Done> {
    servers.create_topic(&backlog.topic("single"), PARTITIONS).await?;
    let (topic, traces) = (backlog.topic("single"), bench.traces.to_string());
    let producer = ["producer", "--brokers", &servers.brokers, "--topic", &topic, "--traces", &traces];
    bare::run(&producer.map(str::to_owned)).await?;
    relay(servers, backlog, "single", true).await
}

async fn relay(servers: &Servers, backlog: &Backlog, from: &str, single: bool) -> anyhow::Result<Done> {
    let to = backlog.topic(&format!("bare-{from}"));
    servers.create_topic(&to, PARTITIONS).await?;
    let (from, partitions) = (backlog.topic(from), PARTITIONS.to_string());
    let relay =
        ["relay", "--brokers", &servers.brokers, "--from", &from, "--to", &to, "--partitions", &partitions];
    let single = single.then_some("--single");
    let words: Vec<String> = relay.into_iter().chain(single).map(str::to_owned).collect();
    bare::run(&words).await
}
