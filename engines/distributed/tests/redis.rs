//! What the seen set promises, on a real Redis: set `PANOPTICON_TEST_REDIS_URL`.

// Everything here runs in tests only.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use panopticon_core::{
    config::{Config, Secret},
    ids::{EventId, LogId, Place, SeenKey},
    seen::{Mark, Marked, Progress, SeenError, SeenSet},
    time::{Clock, SystemClock, Time},
};
use panopticon_distributed::redis::{MAX_MARKS_PER_CALL, RedisSeen};

const LOG: LogId = LogId(0xfeed_0000_0000_0001);

struct ShiftedClock(AtomicI64);

impl Clock for ShiftedClock {
    fn now(&self) -> Time {
        Time::from_micros(SystemClock.now().micros() + self.0.load(Ordering::SeqCst))
    }
}

struct Set {
    seen: RedisSeen,
    clock: Arc<ShiftedClock>,
    config: Config,
}

impl Set {
    async fn new() -> Option<Self> {
        let Ok(url) = std::env::var("PANOPTICON_TEST_REDIS_URL") else {
            println!("skipped: PANOPTICON_TEST_REDIS_URL is not set");
            return None;
        };
        let mut config = Config::default();
        config.redis.url = Secret::new(url);
        config.redis.key_prefix = format!("test:{}:", LogId::random());
        // Other tests keep the server busy; how long that takes is nobody's promise.
        config.redis.timeout_ms = 30_000;
        let clock = Arc::new(ShiftedClock(AtomicI64::new(0)));
        let seen = RedisSeen::connect(&config, clock.clone()).await.unwrap();
        Some(Self { seen, clock, config })
    }

    fn advance(&self, by: Duration) {
        self.clock.0.fetch_add(by.as_micros() as i64, Ordering::SeqCst);
    }

    async fn firsts(&self, marks: Vec<Mark>, progress: Option<Progress>) -> Vec<Place> {
        match self.seen.mark(marks, progress).await.unwrap() {
            Marked::First(places) => places,
            Marked::Lost => panic!("lost"),
        }
    }

    async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.config.redis.url.expose()).unwrap();
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        client.get_multiplexed_async_connection_with_config(&patient).await.unwrap()
    }

    async fn command<T: redis::FromRedisValue>(&self, name: &str, arguments: &[&str]) -> T {
        redis::cmd(name).arg(arguments).query_async(&mut self.connection().await).await.unwrap()
    }

    async fn forget_everything(&self) {
        let keys: Vec<String> = self.command("KEYS", &[&format!("{}*", self.config.redis.key_prefix)]).await;
        for keys in keys.chunks(1_000) {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let _: u64 = self.command("DEL", &keys).await;
        }
    }
}

fn key(n: u128) -> SeenKey {
    SeenKey::of("app", EventId(uuid::Uuid::from_u128(n)))
}

fn place(offset: u64, index: u32) -> Place {
    Place { log_id: LOG, partition: 3, offset, index }
}

fn mark(n: u128, offset: u64, index: u32) -> Mark {
    Mark { key: key(n), place: place(offset, index) }
}

fn progress(from: u64, to: u64) -> Option<Progress> {
    Some(Progress { partition: 3, from, to })
}

#[tokio::test]
async fn the_place_that_came_first_is_answered_in_a_batch_and_across_batches() {
    let Some(set) = Set::new().await else { return };
    let batch = vec![mark(1, 10, 0), mark(2, 10, 1), mark(1, 10, 2)];
    assert_eq!(set.firsts(batch.clone(), None).await, [place(10, 0), place(10, 1), place(10, 0)]);
    assert_eq!(set.firsts(batch, None).await, [place(10, 0), place(10, 1), place(10, 0)]);
    assert_eq!(set.firsts(vec![mark(2, 99, 9), mark(3, 99, 9)], None).await, [place(10, 1), place(99, 9)]);
}

#[tokio::test]
async fn places_of_other_logs_are_told_apart() {
    let Some(set) = Set::new().await else { return };
    let elsewhere = |n, log| Mark {
        key: key(n),
        place: Place { log_id: LogId(log), partition: u32::MAX, offset: u64::MAX, index: u32::MAX },
    };
    let marks: Vec<Mark> = (0..100).map(|n| elsewhere(n, n as u64 * 0x0101_0101_0101_0101)).collect();
    let places: Vec<Place> = marks.iter().map(|mark| mark.place).collect();
    assert_eq!(set.firsts(marks, None).await, places);
    assert_eq!(set.firsts((0..100).map(|n| mark(n, 1, 1)).collect(), None).await, places);
}

#[tokio::test]
async fn an_id_is_remembered_for_the_window_and_not_for_twice_as_long() {
    let Some(set) = Set::new().await else { return };
    let window = set.config.retention.seen_window();
    set.firsts(vec![mark(1, 1, 0)], None).await;
    set.advance(window - Duration::from_secs(60));
    assert_eq!(set.firsts(vec![mark(1, 2, 0)], None).await, [place(1, 0)]);
    set.advance(window);
    assert_eq!(set.firsts(vec![mark(1, 3, 0)], None).await, [place(3, 0)]);
}

#[tokio::test]
async fn hashes_expire_as_a_whole() {
    let Some(mut set) = Set::new().await else { return };
    set.config.retention.seen_secs = 1;
    set.seen = RedisSeen::connect(&set.config, set.clock.clone()).await.unwrap();
    set.firsts((0..500).map(|n| mark(n, 1, 0)).collect(), None).await;
    tokio::time::sleep(Duration::from_millis(1_700)).await;
    let left: Vec<String> =
        set.command("KEYS", &[&format!("{}seen:*:*.*:*", set.config.redis.key_prefix)]).await;
    assert!(left.is_empty(), "{} hashes are left", left.len());
}

#[tokio::test]
async fn a_new_installation_has_lost_nothing() {
    let Some(set) = Set::new().await else { return };
    // A batch without traces does not say of which log it is.
    assert_eq!(set.firsts(vec![], progress(0, 4)).await, []);
    set.firsts(vec![mark(1, 4, 0)], progress(4, 5)).await;
    set.firsts(vec![], progress(5, 7)).await;
    set.firsts(vec![mark(2, 7, 0)], progress(7, 9)).await;
}

#[tokio::test]
async fn a_batch_again_after_a_crash_keeps_its_own_traces() {
    let Some(set) = Set::new().await else { return };
    let batch = vec![mark(1, 0, 0), mark(2, 0, 1)];
    let first = set.firsts(batch.clone(), progress(0, 1)).await;
    assert_eq!(set.firsts(batch, progress(0, 1)).await, first);
    set.firsts(vec![mark(3, 1, 0)], progress(1, 2)).await;
}

#[tokio::test]
async fn lost_marks_are_noticed_and_can_be_restored() {
    let Some(set) = Set::new().await else { return };
    set.firsts(vec![mark(1, 0, 0)], progress(0, 10)).await;
    set.forget_everything().await;
    // The gateway goes on marking meanwhile: a resend of trace 1 gets in front of the restore.
    set.firsts(vec![mark(1, 11, 0)], None).await;
    assert_eq!(set.seen.mark(vec![mark(2, 10, 0)], progress(10, 12)).await.unwrap(), Marked::Lost);
    assert_eq!(set.seen.mark(vec![mark(2, 10, 0)], progress(10, 12)).await.unwrap(), Marked::Lost);

    set.seen.restore(vec![mark(1, 0, 0)], None).await.unwrap();
    assert_eq!(set.seen.mark(vec![], progress(10, 12)).await.unwrap(), Marked::Lost);
    set.seen.restore(vec![], progress(0, 10)).await.unwrap();
    let batch = vec![mark(2, 10, 0), mark(1, 11, 0)];
    assert_eq!(set.firsts(batch, progress(10, 12)).await, [place(10, 0), place(0, 0)]);
}

#[tokio::test]
async fn an_older_snapshot_is_noticed() {
    let Some(set) = Set::new().await else { return };
    set.seen.restore(vec![mark(1, 0, 0)], progress(0, 5)).await.unwrap();
    assert_eq!(set.seen.mark(vec![mark(2, 6, 0)], progress(6, 7)).await.unwrap(), Marked::Lost);
    set.firsts(vec![mark(2, 5, 0)], progress(5, 7)).await;
}

#[tokio::test]
async fn a_topic_created_anew_starts_anew() {
    let Some(set) = Set::new().await else { return };
    set.firsts(vec![mark(1, 99, 0)], progress(0, 100)).await;
    let anew =
        |n, offset| Mark { key: key(n), place: Place { log_id: LogId(7), partition: 3, offset, index: 0 } };
    assert_eq!(set.seen.mark(vec![anew(2, 50)], progress(50, 51)).await.unwrap(), Marked::Lost);
    set.firsts(vec![anew(3, 0)], progress(0, 1)).await;
    assert_eq!(set.seen.mark(vec![anew(4, 50)], progress(50, 51)).await.unwrap(), Marked::Lost);
    set.firsts(vec![anew(4, 1)], progress(1, 2)).await;
}

#[tokio::test]
async fn a_batch_of_any_size_is_marked_and_its_progress_advances_at_the_end() {
    let Some(set) = Set::new().await else { return };
    let many: Vec<Mark> = (0..MAX_MARKS_PER_CALL as u32 * 2 + 1).map(|n| mark(n.into(), 0, n)).collect();
    let places: Vec<Place> = many.iter().map(|mark| mark.place).collect();
    assert_eq!(set.firsts(many.clone(), progress(0, 1)).await, places);
    assert_eq!(set.firsts(many, progress(1, 2)).await, places);
}

#[tokio::test]
async fn hashes_stay_small_however_many_marks_a_period_brings() {
    let Some(set) = Set::new().await else { return };
    // Small hashes bring about in seconds what takes millions of marks with the usual ones.
    let before: Vec<String> = set.command("CONFIG", &["GET", "hash-max-listpack-entries"]).await;
    let _: () = set.command("CONFIG", &["SET", "hash-max-listpack-entries", "4"]).await;
    let seen = RedisSeen::connect(&set.config, set.clock.clone()).await.unwrap();
    let _: () = set.command("CONFIG", &["SET", "hash-max-listpack-entries", &before[1]]).await;
    let set = Set { seen, ..set };
    let many: Vec<Mark> = (0..120_000).map(|n| mark(n, 1, n as u32)).collect();
    let places: Vec<Place> = many.iter().map(|mark| mark.place).collect();
    for chunk in many.chunks(10_000) {
        set.firsts(chunk.to_vec(), None).await;
    }
    let layers: Vec<String> =
        set.command("HKEYS", &[&format!("{}seen:1:layers", set.config.redis.key_prefix)]).await;
    assert_eq!(layers.len(), 2, "{layers:?}");
    assert_eq!(set.firsts(many.clone(), None).await, places);
    // The next period is cut for what this one brought.
    set.advance(set.config.retention.seen_window() / 2);
    set.firsts(vec![mark(1_000_000, 2, 0)], None).await;
    let layers: Vec<String> =
        set.command("HKEYS", &[&format!("{}seen:1:layers", set.config.redis.key_prefix)]).await;
    assert!(layers.iter().any(|layer| layer.ends_with(".16")), "{layers:?}");
    assert_eq!(set.firsts(many, None).await, places);
    set.forget_everything().await;
}

#[tokio::test]
async fn an_unreachable_server_is_named_without_its_password() {
    let mut config = Config::default();
    config.redis.url = Secret::new("redis://user:hunter2@127.0.0.1:9/");
    config.redis.timeout_ms = 500;
    let Err(SeenError::Unavailable(text)) = RedisSeen::connect(&config, Arc::new(SystemClock)).await else {
        panic!("must be unavailable")
    };
    assert!(text.contains("127.0.0.1:9") && !text.contains("hunter2"), "{text}");
}

/// Run with `--ignored --nocapture` on a Redis of one's own, which it empties: speed, and memory against
/// plain keys.
#[tokio::test]
#[ignore = "a measurement"]
async fn measure() {
    let Some(set) = Set::new().await else { return };
    let used = async || -> u64 {
        let info: String = set.command("INFO", &["memory"]).await;
        info.lines().find_map(|l| l.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
    };
    let total = 1_000_000_u64;
    let ids: Vec<u128> = (0..total).map(|_| uuid::Uuid::new_v4().as_u128()).collect();
    let mut empty = used().await;
    for pass in ["new", "known"] {
        let start = std::time::Instant::now();
        for (i, ids) in ids.chunks(5_000).enumerate() {
            let marks = ids.iter().enumerate().map(|(n, id)| mark(*id, i as u64, n as u32)).collect();
            set.firsts(marks, None).await;
        }
        println!("{pass}: {:.0} marks/s", total as f64 / start.elapsed().as_secs_f64());
    }
    let ours = used().await - empty;
    set.forget_everything().await;

    empty = used().await;
    let mut connection = set.connection().await;
    let prefix = &set.config.redis.key_prefix;
    for chunk in ids.chunks(5_000) {
        let mut pipe = redis::pipe();
        for id in chunk {
            let key = format!("seen:{prefix}:{}", uuid::Uuid::from_u128(*id));
            pipe.cmd("SET").arg(key).arg("3:123456789:12").arg("EX").arg(86_400).ignore();
        }
        let () = pipe.query_async(&mut connection).await.unwrap();
    }
    let plain = used().await - empty;
    let per = |bytes: u64| bytes as f64 / total as f64;
    println!(
        "{:.1} bytes a trace; plain keys {:.1}; ratio {:.3}",
        per(ours),
        per(plain),
        per(ours) / per(plain)
    );
    let () = set.command("FLUSHDB", &[]).await;
}
