//! Whether memory stays flat under a steady load.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use crate::{
    Bench,
    latency::{self, Heard},
    report::{Reach, Report, Row},
    samples::Spread,
    system::{Engine, System},
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What the last fifth of the time may take of what the second fifth took: in the first, caches fill.
const FLAT: f64 = 1.1;

/// Measures every process at `rate` traces a second for `span`.
pub async fn measure(report: &mut Report, bench: &Bench, rate: u64, span: Duration) -> anyhow::Result<()> {
    let system = System::start(Engine::Distributed, &bench.bin).await?;
    let processes = system.processes();
    let mut seen: Vec<Vec<f64>> = vec![Vec::new(); processes.len()];
    let began = Instant::now();
    let late = {
        let answers = Heard::default();
        let mut load = pin!(latency::pace(&system, rate, span, &answers));
        loop {
            tokio::select! {
                late = &mut load => break late?,
                () = tokio::time::sleep(LOOK_EVERY) => {
                    for ((_, process), seen) in processes.iter().zip(&mut seen) {
                        seen.push(process.resident_mib());
                    }
                }
            }
        }
    };
    let took = began.elapsed().as_secs_f64();
    for ((name, process), seen) in processes.iter().zip(&seen) {
        let fifth = (seen.len() / 5).max(1);
        let part = |n: usize| Spread::of(seen.iter().skip(n * fifth).take(fifth).copied()).median;
        report.add(
            Row::pairs(
                format!("memory of {name}, last fifth of {took:.0} s at {rate}/s"),
                "its second fifth",
                "MiB",
                &[(part(4), part(1))],
            )
            .reach(Reach::AtMost(FLAT))
            .peak(process.peak_mib())
            .note(format!("{late} requests left late")),
        );
    }
    system.stop().await
}
