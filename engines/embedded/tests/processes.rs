//! What holds between processes, and when one is killed. The child is this test binary, run again.

// Tests may, and so may what they share.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use panopticon_core::{
    config::Config,
    log::{Commit, Output, Poll, PollLimits, Record, Stored},
    time::SystemClock,
    topic::Topic,
};
use panopticon_embedded::{Embedded, OpenError};
use tempfile::TempDir;

const DIRECTORY: &str = "PANOPTICON_TEST_DIRECTORY";

fn open(directory: &Path) -> Result<Embedded, OpenError> {
    let config = Config { data_dir: directory.to_owned(), ..Config::default() };
    Embedded::open(&config, Arc::new(SystemClock))
}

fn text(stored: &Stored) -> String {
    String::from_utf8(stored.record.bytes().to_vec()).unwrap()
}

async fn all(engine: &Embedded, topic: Topic) -> Vec<Stored> {
    engine.log.read(topic, 0, 0, u64::MAX, usize::MAX).await.unwrap()
}

/// Appends for ever, saying what was answered, and copies what it appends to another topic.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests of this file"]
async fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let engine = open(&directory).unwrap();
    let log = Arc::clone(&engine.log);
    tokio::spawn(async move {
        let mut subscription = log.subscribe("copy", Topic::TracesRaw).await.unwrap();
        let mut lease = subscription.next_lease().await.unwrap();
        let limits = PollLimits { records: 3, bytes: 1 << 20, wait: Duration::from_secs(1) };
        while let Poll::Records(records) = lease.poll(limits).await.unwrap() {
            let outputs = records.iter().map(|stored| Output {
                topic: Topic::Traces,
                partition: 0,
                record: Record::message(stored.record.payload.clone().unwrap()),
            });
            let next = records.last().map(|last| last.offset + 1);
            let commit = Commit { outputs: outputs.collect(), next, metadata: String::new() };
            lease.commit(commit).await.unwrap();
        }
    });
    let writers = (0..4).map(|writer| {
        let log = Arc::clone(&engine.log);
        tokio::spawn(async move {
            for n in 0_u64.. {
                let text = format!("{writer}/{n} {}", "x".repeat(2_000));
                log.append(Topic::TracesRaw, 0, Record::message(text.clone())).await.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "answered {writer}/{n}").unwrap();
                out.flush().unwrap();
            }
        })
    });
    futures::future::join_all(writers.collect::<Vec<_>>()).await;
}

fn spawn(directory: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    (child, lines.filter_map(|line| line.strip_prefix("answered ").map(str::to_owned)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_has_lost_nothing_that_it_answered() {
    let directory = TempDir::new().unwrap();
    let mut answered = BTreeSet::new();
    for round in 0..4 {
        // Each round goes on where the one before was killed.
        let (mut child, mut lines) = spawn(directory.path());
        let mut round_answered: Vec<_> = lines.by_ref().take(200 + 150 * round).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it ended.
        round_answered.extend(lines);
        answered.extend(round_answered.into_iter().map(|line| (round, line)));

        let engine = open(directory.path()).unwrap();
        let raw = all(&engine, Topic::TracesRaw).await;
        let offsets: Vec<_> = raw.iter().map(|stored| stored.offset).collect();
        assert_eq!(offsets, (0..raw.len() as u64).collect::<Vec<_>>());
        let mut kept: Vec<String> =
            raw.iter().map(|stored| text(stored).split(' ').next().unwrap().to_owned()).collect();
        kept.sort_unstable();
        for (_, line) in &answered {
            let there = kept.binary_search(line);
            assert!(there.is_ok(), "{line} was answered, and is not there");
            // Rounds use the same names: every answer needs a record of its own.
            kept.remove(there.unwrap());
        }

        // What the stage wrote is exactly what it says it has processed.
        let lag = engine.log.lag("copy", Topic::TracesRaw).await.unwrap();
        let processed = lag[0].committed.offset.unwrap_or(0) as usize;
        let copied: Vec<_> = all(&engine, Topic::Traces).await.iter().map(text).collect();
        assert_eq!(copied, raw[..processed].iter().map(text).collect::<Vec<_>>());
        engine.close().await;
    }
    assert!(answered.len() >= 4 * 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_with_the_directory_and_the_pid() {
    let directory = TempDir::new().unwrap();
    let (mut child, mut lines) = spawn(directory.path());
    lines.next().unwrap();
    let refused = open(directory.path()).err().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(&refused, OpenError::InUse { pid, .. } if *pid == Some(child.id())), "{refused}");
    let text = refused.to_string();
    assert!(text.contains(&directory.path().display().to_string()) && text.contains(&child.id().to_string()));
    open(directory.path()).unwrap();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("data");
    let engine = open(&directory).unwrap();
    engine.log.append(Topic::TracesRaw, 0, Record::message("x")).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for file in std::fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_later_version_is_refused() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).unwrap().close().await;
    let conn = rusqlite::Connection::open(directory.path().join("panopticon.db")).unwrap();
    conn.execute_batch("PRAGMA user_version = 1000").unwrap();
    drop(conn);
    let refused = open(directory.path()).err().unwrap();
    assert!(matches!(refused, OpenError::Newer { found: 1000, .. }), "{refused}");
}
