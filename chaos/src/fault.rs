//! The faults: what each one does, from its beginning to the moment everything is back.

use std::time::Duration;

use rustix::process::Signal;

use crate::{
    bed::Bed,
    proxy::Mode,
    servers::{Act, Server, flush_redis, kill_now},
    worker::Worker,
};

/// How long a fault waits for the moment at which it strikes.
const MOMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the answers of Redis are held before the gateway dies: shorter than it waits for them.
const HELD_MARK: Duration = Duration::from_millis(500);
/// How long the answers of ClickHouse are held before the writer dies: the insert is in by then.
const HELD_INSERT: Duration = Duration::from_millis(700);

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// SIGKILL of a process, which comes back after a while.
    Kill { program: &'static str, number: usize, away: Duration },
    /// SIGKILL of both processes of a worker at once.
    KillBoth { program: &'static str, away: Duration },
    /// SIGSTOP for longer than the session, then SIGCONT: a zombie.
    Freeze { program: &'static str, number: usize, span: Duration },
    /// SIGTERM; it must end in time, and comes back after a while.
    Terminate { program: &'static str, number: usize, away: Duration },
    /// A gateway dies after the log's word and before that of the seen set.
    AckWithoutMark { number: usize },
    /// A writer dies after its insert and before its commit.
    RowsWithoutCommit { number: usize },
    /// A server ends as asked.
    Stop { server: Server, away: Duration },
    /// A server ends by SIGKILL.
    Crash { server: Server, away: Duration },
    /// ClickHouse ends by SIGKILL a moment after an insert reached it.
    CrashInInsert { after: Duration, away: Duration },
    /// A server is frozen and goes on.
    Pause { server: Server, span: Duration },
    /// Redis forgets everything.
    Flush,
    /// Redis is put back to what it held a while ago.
    Older { ago: Duration },
    /// Answers of a server take their time.
    Slow { server: Server, by: Duration, span: Duration },
    /// Connections to a server end in the middle.
    Cut { server: Server, span: Duration },
}

impl Fault {
    /// What it is called in tables.
    pub fn kind(&self) -> String {
        match self {
            Self::Kill { program, .. } => format!("kill -9 {program}"),
            Self::KillBoth { program, .. } => format!("kill -9 both {program}"),
            Self::Freeze { program, .. } => format!("freeze {program}"),
            Self::Terminate { program, .. } => format!("SIGTERM {program}"),
            Self::AckWithoutMark { .. } => "kill -9 ingest-gateway between ack and mark".to_owned(),
            Self::RowsWithoutCommit { .. } => "kill -9 stream-workers between insert and commit".to_owned(),
            Self::Stop { server, .. } => format!("stop {}", server.name()),
            Self::Crash { server, .. } => format!("kill -9 {}", server.name()),
            Self::CrashInInsert { .. } => "kill -9 clickhouse in an insert".to_owned(),
            Self::Pause { server, .. } => format!("freeze {}", server.name()),
            Self::Flush => "empty redis".to_owned(),
            Self::Older { .. } => "put redis back to an older copy".to_owned(),
            Self::Slow { server, .. } => format!("slow answers of {}", server.name()),
            Self::Cut { server, .. } => format!("cut connections to {}", server.name()),
        }
    }

    /// Does it, and returns when everything that it took away is back; what there is to say of it.
    pub async fn strike(&self, bed: &Bed) -> anyhow::Result<String> {
        let servers = &bed.servers;
        match *self {
            Self::Kill { program, number, away } => {
                let worker = worker(bed, program, number)?;
                let _fault = worker.fault.lock().await;
                worker.kill().await?;
                tokio::time::sleep(away).await;
                worker.start()?;
            }
            Self::KillBoth { program, away } => {
                let (one, other) = (worker(bed, program, 0)?, worker(bed, program, 1)?);
                let _faults = (one.fault.lock().await, other.fault.lock().await);
                one.kill().await?;
                other.kill().await?;
                tokio::time::sleep(away).await;
                one.start()?;
                other.start()?;
            }
            Self::Freeze { program, number, span } => {
                let worker = worker(bed, program, number)?;
                let _fault = worker.fault.lock().await;
                worker.signal(Signal::STOP)?;
                tokio::time::sleep(span).await;
                worker.signal(Signal::CONT)?;
            }
            Self::Terminate { program, number, away } => {
                let worker = worker(bed, program, number)?;
                let _fault = worker.fault.lock().await;
                let ended = worker.terminate().await;
                tokio::time::sleep(away).await;
                worker.start()?;
                let took = ended?;
                bed.drains.lock().push((worker.name.clone(), took));
                return Ok(format!("drained in {:.1} s", took.as_secs_f64()));
            }
            Self::AckWithoutMark { number } => {
                let gateway = worker(bed, "ingest-gateway", number)?;
                let _fault = gateway.fault.lock().await;
                bed.redis.set(Mode::Hold);
                tokio::time::sleep(HELD_MARK).await;
                let killed = gateway.kill().await;
                bed.redis.set(Mode::Pass);
                killed?;
                gateway.start()?;
            }
            Self::RowsWithoutCommit { number } => {
                let writer = worker(bed, "stream-workers", number)?;
                let _fault = writer.fault.lock().await;
                bed.clickhouse.set(Mode::Hold);
                let seen = tokio::time::timeout(MOMENT_TIMEOUT, bed.clickhouse.next_question()).await;
                tokio::time::sleep(HELD_INSERT).await;
                let killed = writer.kill().await;
                bed.clickhouse.set(Mode::Pass);
                killed?;
                writer.start()?;
                return Ok(seen_or_not(seen.is_ok(), "held its answer"));
            }
            Self::Stop { server, away } => {
                servers.act(Act::Stop, server).await?;
                tokio::time::sleep(away).await;
                servers.act(Act::Start, server).await?;
            }
            Self::Crash { server, away } => {
                servers.act(Act::Kill, server).await?;
                tokio::time::sleep(away).await;
                servers.act(Act::Start, server).await?;
            }
            Self::CrashInInsert { after, away } => {
                let pid = servers.pid(Server::Clickhouse).await?;
                let seen = tokio::time::timeout(MOMENT_TIMEOUT, bed.clickhouse.next_question()).await;
                tokio::time::sleep(after).await;
                kill_now(pid);
                servers.act(Act::Kill, Server::Clickhouse).await?;
                tokio::time::sleep(away).await;
                servers.act(Act::Start, Server::Clickhouse).await?;
                return Ok(seen_or_not(seen.is_ok(), &format!("{after:?} into it")));
            }
            Self::Pause { server, span } => {
                servers.act(Act::Pause, server).await?;
                tokio::time::sleep(span).await;
                servers.act(Act::Resume, server).await?;
            }
            Self::Flush => flush_redis(&bed.redis_address).await?,
            Self::Older { ago } => servers.redis_back_to_older(ago).await?,
            Self::Slow { server, by, span } => {
                let proxy = if server == Server::Redis { &bed.redis } else { &bed.clickhouse };
                proxy.set(Mode::Slow(by));
                tokio::time::sleep(span).await;
                proxy.set(Mode::Pass);
            }
            Self::Cut { server, span } => {
                let proxy = if server == Server::Redis { &bed.redis } else { &bed.clickhouse };
                proxy.set(Mode::Cut);
                tokio::time::sleep(span).await;
                proxy.set(Mode::Pass);
            }
        }
        Ok(String::new())
    }
}

/// Whether the moment came that a fault waited for.
fn seen_or_not(seen: bool, what: &str) -> String {
    if seen { what.to_owned() } else { format!("no insert within {MOMENT_TIMEOUT:?}") }
}

fn worker<'a>(bed: &'a Bed, program: &str, number: usize) -> anyhow::Result<&'a Worker> {
    let found = bed.processes(program).nth(number);
    found.ok_or_else(|| anyhow::anyhow!("there is no {program} number {number}"))
}
