//! The dedupe and store stages as a process of their own.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use panopticon_process::{
    CommonArgs, NeedOfSeen, NeedOfStore, Needs, Process, run_stages, use_small_pages, worker,
};
use panopticon_stream_workers::{dedupe, store};

/// Takes traces from the raw log to the trace store.
#[derive(Debug, Parser)]
#[command(
    name = "stream-workers",
    version,
    after_help = "Examples:\n  \
    stream-workers                 both stages in one process\n  \
    stream-workers --role dedupe   one stage alone, scaled on its own\n  \
    stream-workers --role store"
)]
struct Args {
    /// Which stages this process runs.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Role::Dedupe, Role::Store])]
    role: Vec<Role>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// `traces.raw` to `traces`: keeps the first of each trace.
    Dedupe,
    /// `traces` and the smaller topics to the trace store.
    Store,
}

fn main() -> ExitCode {
    let args = Args::parse();
    use_small_pages();
    let roles = args.role;
    worker(&args.common, "stream-workers", |process| run(process, roles))
}

async fn run(process: Process, roles: Vec<Role>) -> anyhow::Result<()> {
    // Dedupe asks the store about old traces alone: it need not wait for it.
    let dedupes = roles.contains(&Role::Dedupe);
    let store_need = match (dedupes, roles.contains(&Role::Store)) {
        (_, false) => NeedOfStore::Answers,
        (true, true) => NeedOfStore::Inserts,
        (false, true) => NeedOfStore::Tables,
    };
    let seen_need = if dedupes { NeedOfSeen::Word } else { NeedOfSeen::None };
    let ports = process.ports(Needs { seen: seen_need, store: store_need }).await?;
    process.keep_house(&ports);
    let stages =
        if roles.contains(&Role::Store) { store(&ports.store()?, &process.config) } else { Vec::new() };
    let stores = run_stages(stages, process.runtime(&ports));
    let dedupes = async {
        // What has been deduplicated is stored meanwhile.
        if dedupes && ports.seen_there().await {
            run_stages(dedupe(ports.seen()?, ports.store()?, &process.config), process.runtime(&ports)).await;
        }
        anyhow::Ok(())
    };
    let ((), deduped) = tokio::join!(stores, dedupes);
    deduped?;
    ports.close().await;
    Ok(())
}
