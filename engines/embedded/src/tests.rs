//! What the engine holds when jobs fail and room is short: from outside this cannot be provoked.

use std::{path::Path, sync::Arc};

use panopticon_core::{
    config::Config,
    ids::{EventId, LogId, Place, SeenKey},
    log::{LogError, Record},
    seen::{Mark, Marked},
    time::SystemClock,
    topic::Topic,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    Embedded,
    fault::Fault,
    writer::{Durability, Tx},
};

fn open(directory: &Path, queue_jobs: usize) -> Embedded {
    let mut config = Config { data_dir: directory.to_owned(), ..Config::default() };
    config.embedded.queue_jobs = queue_jobs;
    Embedded::open(&config, Arc::new(SystemClock)).unwrap()
}

/// Occupies the writer until it is let go, so that what is sent meanwhile shares a transaction.
async fn hold_writer(engine: &Embedded) -> std::sync::mpsc::Sender<()> {
    let (let_go, wait) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let core = Arc::clone(&engine.core);
    let mut begun = Some(begun);
    tokio::spawn(async move {
        let hold = move |_: &mut Tx<'_>| {
            if let Some(begun) = begun.take() {
                let _ = begun.send(());
            }
            let _ = wait.recv();
            Ok(())
        };
        let _ = core.writer.run(Durability::Lazy, hold).await;
    });
    has_begun.await.unwrap();
    let_go
}

async fn texts(engine: &Embedded) -> Vec<String> {
    let read = engine.log.read(Topic::TracesRaw, 0, 0, u64::MAX, usize::MAX).await.unwrap();
    read.iter().map(|stored| String::from_utf8(stored.record.bytes().to_vec()).unwrap()).collect()
}

fn append(engine: &Embedded, text: Vec<u8>) -> tokio::task::JoinHandle<Result<Option<u64>, LogError>> {
    let log = Arc::clone(&engine.log);
    tokio::spawn(async move { log.append(Topic::TracesRaw, 0, Record::message(text)).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_or_panics_does_not_hurt_those_in_its_transaction() {
    let directory = TempDir::new().unwrap();
    let engine = open(directory.path(), 100);
    let let_go = hold_writer(&engine).await;
    let before = append(&engine, b"before".to_vec());
    tokio::task::yield_now().await;
    let half_done = |tx: &mut Tx<'_>| -> Result<(), Fault> {
        tx.conn.execute("UPDATE log_partitions SET next = next + 100", [])?;
        Ok(())
    };
    let core = Arc::clone(&engine.core);
    let fails = tokio::spawn(async move {
        let job = core.writer.run(Durability::Lazy, move |tx| {
            half_done(tx)?;
            Err::<(), _>(Fault::Broken("wanted".to_owned()))
        });
        job.await
    });
    let core = Arc::clone(&engine.core);
    let panics = tokio::spawn(async move {
        let job = core.writer.run(Durability::Lazy, move |tx| {
            half_done(tx)?;
            if true { panic!("wanted") } else { Ok(()) }
        });
        job.await
    });
    let after = append(&engine, b"after".to_vec());
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let_go.send(()).unwrap();

    assert!(matches!(fails.await.unwrap(), Err(Fault::Broken(why)) if why == "wanted"));
    assert!(matches!(panics.await.unwrap(), Err(Fault::Broken(_))));
    let mut offsets = [before.await.unwrap().unwrap(), after.await.unwrap().unwrap()];
    offsets.sort_unstable();
    assert_eq!(offsets, [Some(0), Some(1)]);
    assert_eq!(texts(&engine).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once() {
    let directory = TempDir::new().unwrap();
    let engine = open(directory.path(), 2);
    let let_go = hold_writer(&engine).await;
    let waiting = [append(&engine, b"1".to_vec()), append(&engine, b"2".to_vec())];
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let refused = engine.log.append(Topic::TracesRaw, 0, Record::message("3")).await;
    assert!(matches!(refused, Err(LogError::Full(_))), "{refused:?}");
    let_go.send(()).unwrap();
    for append in waiting {
        append.await.unwrap().unwrap();
    }
    assert_eq!(texts(&engine).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_has_no_room_keeps_the_rest_and_recovers() {
    let directory = TempDir::new().unwrap();
    let engine = open(directory.path(), 1_000);
    let limit_pages = async |pages: i64| {
        let limit = move |tx: &mut Tx<'_>| {
            let now: i64 = tx.conn.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let limit = format!("PRAGMA max_page_count = {}", now + pages);
            tx.conn.query_row(&limit, [], |_| Ok(())).map_err(Fault::from)
        };
        engine.core.writer.run(Durability::Lazy, limit).await.unwrap();
    };
    limit_pages(40).await;
    // Together in one transaction: a large one that finds no room, and small ones that do.
    let let_go = hold_writer(&engine).await;
    let small: Vec<_> = (0..5).map(|n| append(&engine, format!("small {n}").into_bytes())).collect();
    let large = append(&engine, vec![b'x'; 1 << 20]);
    let more: Vec<_> = (5..10).map(|n| append(&engine, format!("small {n}").into_bytes())).collect();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let_go.send(()).unwrap();
    let refused = large.await.unwrap();
    assert!(matches!(refused, Err(LogError::Full(_))), "{refused:?}");
    for append in small.into_iter().chain(more) {
        append.await.unwrap().unwrap();
    }
    assert_eq!(texts(&engine).await.len(), 10);

    limit_pages(1_000_000).await;
    append(&engine, vec![b'x'; 1 << 20]).await.unwrap().unwrap();
    engine.close().await;
    drop(engine);
    assert_eq!(texts(&open(directory.path(), 10)).await.len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_in_memory_is_what_is_in_the_file_after_a_rollback() {
    let directory = TempDir::new().unwrap();
    let engine = open(directory.path(), 100);
    let key = |n| SeenKey::of("app", EventId(Uuid::from_u128(n)));
    let place = |offset| Place { log_id: LogId(1), partition: 0, offset, index: 0 };
    let mark = |n, offset| {
        let seen = Arc::clone(&engine.seen);
        tokio::spawn(async move {
            seen.mark(vec![Mark { key: key(n), place: place(offset) }], None).await.unwrap()
        })
    };
    assert_eq!(mark(1, 1).await.unwrap(), Marked::First(vec![place(1)]));
    let let_go = hold_writer(&engine).await;
    let second = mark(2, 2);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let core = Arc::clone(&engine.core);
    let fails = tokio::spawn(async move {
        let job = core.writer.run(Durability::Lazy, |tx| {
            tx.conn.execute("DELETE FROM seen_recent", [])?;
            Err::<(), _>(Fault::Broken("wanted".to_owned()))
        });
        job.await
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let third = mark(3, 3);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let_go.send(()).unwrap();
    fails.await.unwrap().unwrap_err();
    assert_eq!(second.await.unwrap(), Marked::First(vec![place(2)]));
    assert_eq!(third.await.unwrap(), Marked::First(vec![place(3)]));

    for n in 1..=3 {
        assert_eq!(mark(n, 9).await.unwrap(), Marked::First(vec![place(n as u64)]));
    }
    let count = |tx: &mut Tx<'_>| -> Result<i64, Fault> {
        Ok(tx.conn.query_row("SELECT count(*) FROM seen_recent", [], |row| row.get(0))?)
    };
    assert_eq!(engine.core.writer.run(Durability::Lazy, count).await.unwrap(), 3);
}
