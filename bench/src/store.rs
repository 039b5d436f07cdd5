//! The store stage alone.

use bytes::Bytes;

use crate::{
    Bench,
    backlog::{Backlog, Drained},
    bare::inserts,
    meter::{self, Meter, share},
    report::{Reach, Report, Row},
    samples::Spread,
    servers::Servers,
};

const PARTITIONS: i32 = 4;
const RATE: f64 = 0.8;
const WRITER_CPU: f64 = 2.0;
const WRITER_MIB: f64 = 200.0;
const CLICKHOUSE_CPU: f64 = 1.2;

/// What came of one round.
struct Round {
    store: Drained,
    with_views: Straight,
    without: Straight,
    /// On ClickHouse's disk, of a row.
    bytes: f64,
}

/// Straight inserts.
struct Straight {
    per_second: f64,
    /// ClickHouse's CPU seconds a million rows.
    cpu: f64,
}

/// Measures the stage beside straight inserts of the same rows.
pub async fn measure(report: &mut Report, bench: &Bench) -> anyhow::Result<()> {
    let servers = Servers::from_environment()?;
    let mut rounds = Vec::new();
    for _ in 0..bench.repeat {
        let backlog = Backlog::fill(bench, PARTITIONS).await?;
        backlog.dedupe(&servers).await?;
        let store = backlog.store(&servers).await?;
        let database = &backlog.installation.database;
        let table = format!("{database}.traces");
        let rows = servers.sql.number(&format!("SELECT count() FROM {table}")).await?;
        let bytes = format!(
            "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = '{database}' AND \
             table = 'traces'"
        );
        let bytes = servers.sql.number(&bytes).await? as f64 / rows as f64;
        let blocks = inserts::blocks(&servers.sql, &table, rows).await?;
        // The same tables with the same views, emptied; then one that no view reads.
        for name in ["traces", "usage_15m", "usage_daily"] {
            servers.sql.run(&format!("TRUNCATE TABLE {database}.{name}")).await?;
        }
        let with_views = straight(&servers, &table, &blocks, rows).await?;
        let plain = format!("{database}.plain");
        servers.sql.run(&format!("CREATE TABLE {plain} AS {table}")).await?;
        let without = straight(&servers, &plain, &blocks, rows).await?;
        backlog.remove(&servers).await?;
        rounds.push(Round { store, with_views, without, bytes });
    }
    add(report, &rounds);
    Ok(())
}

fn add(report: &mut Report, rounds: &[Round]) {
    let pairs = |ours: fn(&Drained) -> f64, bare: fn(&Round) -> f64| {
        rounds.iter().map(|round| (ours(&round.store), bare(round))).collect::<Vec<_>>()
    };
    let alone = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let shares: Vec<_> = rounds.iter().map(|round| round.store.shares.clone()).collect();
    let plain_cpu = Spread::of(alone(|round| round.without.cpu)).median;
    let clickhouse_cpu: fn(&Drained) -> f64 = |store| share(&store.shares, "ClickHouse");
    let against = "the same rows in RowBinary, blocks of 50,000, same views";
    let what = "store, one process, with aggregates";
    let rate: fn(&Drained) -> f64 = |store| store.per_second;
    report.add(
        Row::pairs(what, against, "rows/s", &pairs(rate, |round| round.with_views.per_second))
            .reach(Reach::AtLeast(RATE))
            .cpu(meter::medians(&shares)),
    );
    report.add(
        Row::pairs(
            what,
            "the same inserts without views",
            "rows/s",
            &pairs(rate, |round| round.without.per_second),
        )
        .note(format!("bare: ClickHouse {plain_cpu:.2} CPU s a million")),
    );
    report.add(
        Row::alone(
            "store: the writer's CPU",
            "CPU s / million",
            alone(|round| share(&round.store.shares, "store")),
        )
        .reach(Reach::AtMost(WRITER_CPU)),
    );
    report.add(
        Row::alone("store: the writer's peak memory", "MiB", alone(|round| round.store.peak_mib))
            .reach(Reach::AtMost(WRITER_MIB)),
    );
    report.add(
        Row::pairs(
            "store: ClickHouse's CPU",
            against,
            "CPU s / million",
            &pairs(clickhouse_cpu, |round| round.with_views.cpu),
        )
        .reach(Reach::AtMost(CLICKHOUSE_CPU)),
    );
    report.add(Row::alone("store: a row on ClickHouse's disk", "bytes", alone(|round| round.bytes)));
}

async fn straight(servers: &Servers, table: &str, blocks: &[Bytes], rows: u64) -> anyhow::Result<Straight> {
    let meter = Meter::start(servers.processes());
    let seconds = inserts::insert(&servers.sql, table, blocks).await?;
    Ok(Straight { per_second: rows as f64 / seconds, cpu: share(&meter.per_million(rows), "ClickHouse") })
}
