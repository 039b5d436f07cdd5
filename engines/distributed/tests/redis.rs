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
    seen::{Mark, Marked, Move, Owner, Progress, Rebuild, Restored, SeenError, SeenSet},
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
        let patient =
            redis::AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        client.get_multiplexed_async_connection_with_config(&patient).await.unwrap()
    }

    async fn command<T: redis::FromRedisValue>(&self, name: &str, arguments: &[&str]) -> T {
        redis::cmd(name).arg(arguments).query_async(&mut self.connection().await).await.unwrap()
    }

    /// In one step, as an emptied server has.
    async fn forget_everything(&self) {
        let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
        let _: () = self.command("EVAL", &[script, "0", &format!("{}*", self.config.redis.key_prefix)]).await;
    }

    async fn is_lost(&self, marks: Vec<Mark>, progress: Option<Progress>) -> bool {
        self.seen.mark(marks, progress).await.unwrap() == Marked::Lost
    }

    /// A whole rebuild.
    async fn rebuild(&self, marks: Vec<Mark>, progress: Option<Progress>) {
        let mut rebuild = Rebuild::new(progress.unwrap());
        assert_eq!(self.seen.restore(&mut rebuild, marks).await.unwrap(), Restored::Whole);
        assert_eq!(self.seen.end_rebuild(rebuild).await.unwrap(), Restored::Whole);
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

/// The only owner, in tests of one.
const OWNER: Owner = Owner { number: 1, nonce: 0x0123_4567_89ab_cdef };

fn progress(from: u64, to: u64) -> Option<Progress> {
    progress_of(OWNER, (from > 0).then_some(OWNER), from, to)
}

fn progress_of(owner: Owner, trusts: Option<Owner>, from: u64, to: u64) -> Option<Progress> {
    Some(Progress { log_id: LOG, partition: 3, from, to, owner, trusts })
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
async fn a_hash_of_a_full_layer_expires_like_those_before() {
    let Some(set) = Set::new().await else { return };
    // On average 26 in each of 65,536 hashes; from 24 on nobody looks whether a hash is new.
    for first in (0..1_720_000).step_by(MAX_MARKS_PER_CALL) {
        let marks = (first..first + MAX_MARKS_PER_CALL as u128).map(|n| mark(n, 1, n as u32)).collect();
        set.firsts(marks, None).await;
    }
    let script = "local hashes, lasting = redis.call('KEYS', ARGV[1]), 0 \
                  for _, hash in ipairs(hashes) do \
                    if redis.call('PTTL', hash) < 0 then lasting = lasting + 1 end \
                  end \
                  return {#hashes, lasting}";
    let pattern = format!("{}seen:*:*.*:*", set.config.redis.key_prefix);
    let counts: Vec<u64> = set.command("EVAL", &[script, "0", &pattern]).await;
    assert_eq!(counts, [1 << 16, 0], "hashes, and those that last");
    set.forget_everything().await;
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
async fn what_is_noted_of_one_half_of_a_record_says_nothing_of_the_other() {
    let Some(set) = Set::new().await else { return };
    set.firsts(vec![mark(1, 1, 0)], None).await;
    // A call that is full ends within a record: the gateway marks its halves one after the other.
    let (one, other) = ([mark(0, 5, 0), mark(1, 5, 1)], [mark(2, 5, 2), mark(3, 5, 3)]);
    let of_one = [place(5, 0), place(1, 0)];
    assert_eq!(set.firsts(one.to_vec(), None).await, of_one);
    set.firsts(other.to_vec(), None).await;
    assert_eq!(set.firsts(one.to_vec(), progress(0, 6)).await, of_one, "the second trace came before");
}

#[tokio::test]
async fn lost_marks_are_noticed_and_can_be_restored() {
    let Some(set) = Set::new().await else { return };
    set.firsts(vec![mark(1, 0, 0)], progress(0, 10)).await;
    set.forget_everything().await;
    // The gateway goes on marking meanwhile: a resend of trace 1 gets in front of the restore.
    set.firsts(vec![mark(1, 11, 0)], None).await;
    assert!(set.is_lost(vec![mark(2, 10, 0)], progress(10, 12)).await);
    assert!(set.is_lost(vec![mark(2, 10, 0)], progress(10, 12)).await);

    let mut rebuild = Rebuild::new(progress(10, 10).unwrap());
    assert_eq!(set.seen.restore(&mut rebuild, vec![mark(1, 0, 0)]).await.unwrap(), Restored::Whole);
    assert!(set.is_lost(vec![], progress(10, 12)).await);
    assert_eq!(set.seen.end_rebuild(rebuild).await.unwrap(), Restored::Whole);
    let batch = vec![mark(2, 10, 0), mark(1, 11, 0)];
    assert_eq!(set.firsts(batch, progress(10, 12)).await, [place(10, 0), place(0, 0)]);
}

#[tokio::test]
async fn an_older_snapshot_is_noticed() {
    let Some(set) = Set::new().await else { return };
    set.firsts(vec![mark(1, 0, 0)], progress(0, 5)).await;
    assert!(set.is_lost(vec![mark(2, 6, 0)], progress(6, 7)).await);
    set.firsts(vec![mark(2, 5, 0)], progress(5, 7)).await;
}

#[tokio::test]
async fn a_mark_that_was_left_behind_by_a_loss_does_not_hide_the_record_that_is_to_be_kept() {
    let Some(set) = Set::new().await else { return };
    // Of two sends of trace 1 the second was marked first: the first one is dropped. Trace 2 is kept.
    set.firsts(vec![mark(1, 1, 0)], None).await;
    let batch = vec![mark(1, 0, 0), mark(2, 0, 1)];
    assert_eq!(set.firsts(batch, progress(0, 1)).await, [place(1, 0), place(0, 1)]);
    set.forget_everything().await;
    // Only now the first one's gateway comes to marking; and another one's, of a send of trace 2.
    set.firsts(vec![mark(1, 0, 0)], None).await;
    set.firsts(vec![mark(2, 1, 1)], None).await;
    let batch = vec![mark(1, 1, 0), mark(2, 1, 1)];
    assert!(set.is_lost(batch.clone(), progress(1, 2)).await);
    set.rebuild(vec![mark(2, 0, 1)], progress(1, 1)).await;
    // A slower one still.
    set.firsts(vec![mark(1, 0, 0)], None).await;
    assert_eq!(set.firsts(batch, progress(1, 2)).await, [place(1, 0), place(0, 1)]);
    // Gateways are told the same.
    let resent = vec![mark(1, 9, 0), mark(2, 9, 1)];
    assert_eq!(set.firsts(resent, None).await, [place(1, 0), place(0, 1)]);
}

#[tokio::test]
async fn a_rebuilt_mark_moves_with_a_replay() {
    let Some(set) = Set::new().await else { return };
    set.rebuild(vec![mark(1, 4, 300)], progress(5, 5)).await;
    let shift = Move { key: key(1), from: place(4, 300), to: place(6, 0) };
    set.seen.shift(vec![shift]).await.unwrap();
    assert_eq!(set.firsts(vec![mark(1, 7, 0)], None).await, [place(6, 0)]);
}

#[tokio::test]
async fn a_worker_that_was_replaced_does_not_hide_a_loss_of_marks() {
    let Some(set) = Set::new().await else { return };
    let old = Owner::after(None);
    set.firsts(vec![mark(1, 0, 0)], progress_of(old, None, 0, 1)).await;
    let owner = Owner::after(Some(old));
    set.firsts(vec![mark(2, 1, 0)], progress_of(owner, Some(old), 1, 2)).await;
    set.forget_everything().await;
    // The old one has read `traces` before the owner's commit.
    assert!(set.is_lost(vec![], progress_of(old, Some(old), 1, 3)).await);
    set.rebuild(vec![mark(1, 0, 0)], progress_of(old, Some(old), 1, 1)).await;
    set.firsts(vec![mark(3, 1, 0)], progress_of(old, Some(old), 1, 3)).await;
    let resent = vec![mark(2, 2, 0)];
    assert!(set.is_lost(resent.clone(), progress_of(owner, Some(owner), 2, 3)).await);
    set.rebuild(vec![mark(1, 0, 0), mark(2, 1, 0)], progress_of(owner, Some(owner), 2, 2)).await;
    assert_eq!(set.firsts(resent, progress_of(owner, Some(owner), 2, 3)).await, [place(1, 0)]);
    // One that began where the owner did is told from it, too.
    set.forget_everything().await;
    let twin = Owner::after(Some(old));
    set.firsts(vec![], progress_of(twin, None, 0, 9)).await;
    assert!(set.is_lost(vec![], progress_of(owner, Some(owner), 3, 4)).await);
}

#[tokio::test]
async fn a_worker_that_was_replaced_does_not_make_the_owner_rebuild() {
    let Some(set) = Set::new().await else { return };
    let old = Owner::after(None);
    set.firsts(vec![mark(1, 0, 0)], progress_of(old, None, 0, 1)).await;
    let owner = Owner::after(Some(old));
    set.firsts(vec![mark(2, 1, 0)], progress_of(owner, Some(old), 1, 2)).await;
    set.firsts(vec![mark(2, 1, 0)], progress_of(old, Some(old), 1, 9)).await;
    set.firsts(vec![mark(3, 2, 0)], progress_of(owner, Some(owner), 2, 3)).await;
    // Nor is the owner taken at a word of the other's.
    assert!(set.is_lost(vec![], progress_of(owner, Some(owner), 4, 5)).await);
}

#[tokio::test]
async fn marks_that_are_lost_again_while_they_are_rebuilt_are_missed() {
    let Some(set) = Set::new().await else { return };
    set.firsts(vec![mark(1, 0, 0), mark(2, 0, 1)], progress(0, 1)).await;
    set.forget_everything().await;
    let mut rebuild = Rebuild::new(progress(1, 1).unwrap());
    assert_eq!(set.seen.restore(&mut rebuild, vec![mark(1, 0, 0)]).await.unwrap(), Restored::Whole);
    set.forget_everything().await;
    let rest = vec![mark(2, 0, 1)];
    assert_eq!(set.seen.restore(&mut rebuild, rest).await.unwrap(), Restored::LostAgain);
    assert_eq!(set.seen.end_rebuild(rebuild).await.unwrap(), Restored::LostAgain);
    assert!(set.is_lost(vec![], progress(1, 2)).await);

    // Two at once: the first is over.
    let begin = async || {
        let mut rebuild = Rebuild::new(progress(1, 1).unwrap());
        assert_eq!(set.seen.restore(&mut rebuild, vec![]).await.unwrap(), Restored::Whole);
        rebuild
    };
    let (first, second) = (begin().await, begin().await);
    assert_eq!(set.seen.end_rebuild(first).await.unwrap(), Restored::LostAgain);
    assert_eq!(set.seen.end_rebuild(second).await.unwrap(), Restored::Whole);
}

#[tokio::test]
async fn marks_that_are_lost_between_two_calls_of_a_batch_are_missed() {
    let Some(set) = Set::new().await else { return };
    let seen = RedisSeen::connect(&set.config, set.clock.clone()).await.unwrap();
    let many = (0..MAX_MARKS_PER_CALL as u32 * 10).map(|n| mark(n.into(), 0, n)).collect();
    let batch = tokio::spawn(async move { seen.mark(many, progress(0, 1)).await });
    // Between two calls, in one step.
    let prefix = &set.config.redis.key_prefix;
    let script = "if redis.call('HEXISTS', ARGV[1] .. 'progress', 'work:3') == 0 then return 0 end \
                  for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do redis.call('DEL', key) end \
                  return 1";
    let mut connection = set.connection().await;
    while !batch.is_finished() {
        let lose = redis::cmd("EVAL").arg(script).arg(0).arg(prefix).to_owned();
        if lose.query_async::<bool>(&mut connection).await.unwrap() {
            break;
        }
    }
    assert!(batch.await.unwrap().unwrap() == Marked::Lost);
}

#[tokio::test]
async fn progress_of_an_older_build_is_understood() {
    let Some(set) = Set::new().await else { return };
    let name = format!("{}progress", set.config.redis.key_prefix);
    let unnamed = |from| progress_of(OWNER, Some(Owner::UNNAMED), from, from + 1);
    // With its log id; and without, as a rebuild left it.
    for (at, written) in [(10, format!("{:016x}:10", LOG.0)), (20, ":20".to_owned())] {
        let _: u64 = set.command("HSET", &[&name, "3", &written]).await;
        assert!(set.is_lost(vec![], unnamed(at + 1)).await);
        assert!(set.is_lost(vec![], progress_of(OWNER, Some(OWNER), at, at + 1)).await);
        set.firsts(vec![mark(at.into(), at, 0)], unnamed(at)).await;
        set.firsts(vec![], progress_of(OWNER, Some(OWNER), at + 1, at + 2)).await;
    }
}

#[tokio::test]
async fn a_topic_created_anew_starts_anew() {
    let Some(set) = Set::new().await else { return };
    set.firsts(vec![mark(1, 99, 0)], progress(0, 100)).await;
    let anew =
        |n, offset| Mark { key: key(n), place: Place { log_id: LogId(7), partition: 3, offset, index: 0 } };
    let progress = |from, to| progress(from, to).map(|progress| Progress { log_id: LogId(7), ..progress });
    assert!(set.is_lost(vec![anew(2, 50)], progress(50, 51)).await);
    set.firsts(vec![anew(3, 0)], progress(0, 1)).await;
    assert!(set.is_lost(vec![anew(4, 50)], progress(50, 51)).await);
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
    let many: Vec<Mark> = (0..240_000).map(|n| mark(n, 1, n as u32)).collect();
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
    set.firsts(vec![mark(2_000_000, 2, 0)], None).await;
    let layers: Vec<String> =
        set.command("HKEYS", &[&format!("{}seen:1:layers", set.config.redis.key_prefix)]).await;
    assert!(layers.iter().any(|layer| layer.ends_with(".17")), "{layers:?}");
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
    let cpu = async || -> f64 {
        let info: String = set.command("INFO", &["cpu"]).await;
        let of = |name: &str| -> f64 {
            info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
        };
        of("used_cpu_user:") + of("used_cpu_sys:")
    };
    let total = 1_000_000_u64;
    let ids: Vec<u128> = (0..total).map(|_| uuid::Uuid::new_v4().as_u128()).collect();
    let mut empty = used().await;
    for pass in ["new", "known"] {
        let (start, before) = (std::time::Instant::now(), cpu().await);
        for (i, ids) in ids.chunks(500).enumerate() {
            let marks = ids.iter().enumerate().map(|(n, id)| mark(*id, i as u64, n as u32)).collect();
            set.firsts(marks, None).await;
        }
        let rate = total as f64 / start.elapsed().as_secs_f64();
        println!("{pass}: {rate:.0} marks/s, {:.2} CPU s a million", cpu().await - before);
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
