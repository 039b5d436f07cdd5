//! The seen set on Redis.
//!
//! Every batch of marks is one Lua script, so that marks and the partition's progress are compared and
//! advanced in one step, in memory, on replicas and on disk alike. What a mark takes is what limits the set:
//! 28 bytes instead of the 208 of a plain key, by keeping marks in hashes small enough for Redis's compact
//! encoding (listpack). Hashes are by period (half the window) and bucket (the first bits of the key);
//! a hash expires as a whole, so nothing is ever deleted mark by mark. `layers.lua` says how the number of
//! buckets follows the traffic; look-ups go through the present period and the two before it.
//!
//! Beside the marks lies the progress of each partition: how far it has come, by which owner's word, and its
//! *floor*: the position at which its marks were last rebuilt. Below the floor only marks count that the
//! rebuild has written; what a slow gateway has marked after the loss, or what came back with a snapshot, may
//! name a record that was dropped in favour of another.
//!
//! It is one primary (replicas as you like), not a cluster: a script names keys as it goes. One core of it
//! marks some 180,000 traces a second, and half as many once there are three periods to look through.

mod connection;
mod place;
mod server;

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use panopticon_core::{
    config::{Config, RedisConfig},
    ids::{LogId, Place},
    seen::{Mark, Marked, Move, Progress, Rebuild, Restored, SeenError, SeenSet},
    time::{Clock as _, SharedClock, SystemClock},
};
use parking_lot::Mutex;
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value, aio::ConnectionManager};
use tokio::sync::OnceCell;

use connection::Access;
use server::{Server, unavailable};

/// Most marks of one call of a script: Redis serves nobody else meanwhile (about 0.1 s).
pub const MAX_MARKS_PER_CALL: usize = 20_000;

/// Part of the keys' names: marks written in another way are not read.
const GENERATION: u32 = 1;
/// Buckets of a period's first layer, as a power of two. Enough for 4 million marks.
const FIRST_BITS: u32 = 16;
/// A clock that is off by no more than this is the machine's own.
const SAME_CLOCK_MS: i64 = 1_000;

/// Remembers in Redis which place came first.
pub struct RedisSeen {
    config: RedisConfig,
    /// Set once it was reached and found fit.
    server: OnceCell<Server>,
    /// Why it is not.
    missing: Mutex<SeenError>,
    clock: SharedClock,
    timeout: Duration,
    mark: Script,
    restore: Script,
    shift: Script,
    keys: [String; 3],
    hash_prefix: String,
    period_ms: u64,
}

/// Whether the configuration is one to connect with.
pub(crate) fn check(config: &Config) -> Result<(), SeenError> {
    Access::new(&config.redis).map(|_| ())
}

impl RedisSeen {
    /// Connects to the configured server and checks that it is fit. Times are the server's own, plus what
    /// `clock` is ahead of this machine's.
    ///
    /// [`SeenError::Unavailable`] when the server is not there, [`SeenError::Broken`] when it is too old,
    /// a cluster, or may evict marks.
    pub async fn connect(config: &Config, clock: SharedClock) -> Result<Self, SeenError> {
        let seen = Self::later(config, clock);
        seen.reach().await?;
        Ok(seen)
    }

    /// The same without connecting: until [`RedisSeen::reach`] has, calls fail at once.
    pub fn later(config: &Config, clock: SharedClock) -> Self {
        let prefix = &config.redis.key_prefix;
        let hash_prefix = format!("{prefix}seen:{GENERATION}:");
        let window_ms = u64::try_from(config.retention.seen_window().as_millis()).unwrap_or(u64::MAX);
        Self {
            config: config.redis.clone(),
            server: OnceCell::new(),
            missing: Mutex::new(SeenError::Unavailable("not connected to Redis yet".to_owned())),
            clock,
            timeout: Duration::from_millis(config.redis.timeout_ms),
            mark: Script::new(concat!(include_str!("layers.lua"), include_str!("mark.lua"))),
            restore: Script::new(concat!(include_str!("layers.lua"), include_str!("restore.lua"))),
            shift: Script::new(concat!(include_str!("layers.lua"), include_str!("shift.lua"))),
            keys: [format!("{hash_prefix}layers"), format!("{hash_prefix}logs"), format!("{prefix}progress")],
            hash_prefix,
            period_ms: (window_ms / 2).max(1),
        }
    }

    /// Connects and checks, unless that is done; after an error nothing is marked. The errors are those of
    /// [`RedisSeen::connect`].
    pub async fn reach(&self) -> Result<(), SeenError> {
        let reached = self.server.get_or_try_init(|| Server::connect(&self.config)).await;
        let Err(error) = reached else { return Ok(()) };
        if matches!(error, SeenError::Broken(_)) {
            metrics::counter!("panopticon_redis_refused_total").increment(1);
        }
        *self.missing.lock() = error.clone();
        Err(error)
    }

    fn server(&self) -> Result<&Server, SeenError> {
        self.server.get().ok_or_else(|| self.missing.lock().clone())
    }

    /// Runs a script over one call's worth of marks, within the timeout.
    async fn call(&self, work: Work, marks: &[Mark], step: Option<Step>) -> Result<Value, SeenError> {
        let server = self.server()?;
        let (script, by_run) = match work {
            Work::Mark => (&self.mark, true),
            Work::Restore => (&self.restore, false),
            Work::Shift => (&self.shift, false),
        };
        // Not the driver's own invocation, which keeps each argument in memory of its own.
        let mut call = redis::cmd("EVALSHA");
        call.arg(script.get_hash()).arg(self.keys.len());
        for key in &self.keys {
            call.arg(key);
        }
        let shift_ms = (self.clock.now().micros() - SystemClock.now().micros()) / 1_000;
        call.arg(&self.hash_prefix)
            .arg(if shift_ms.abs() <= SAME_CLOCK_MS { 0 } else { shift_ms })
            .arg(self.period_ms)
            .arg(server.hash_marks())
            .arg(FIRST_BITS);
        match step {
            None => (0..STEP_ARGUMENTS).for_each(|_| {
                call.arg("");
            }),
            Some(Step { progress, work, calls, is_last }) => {
                call.arg(progress.partition)
                    .arg(progress.from)
                    .arg(if is_last { progress.to.to_string() } else { String::new() })
                    .arg(format!("{:016x}", progress.log_id.0))
                    .arg(progress.owner.to_string())
                    .arg(progress.trusts.map(|owner| owner.to_string()).unwrap_or_default())
                    .arg(format!("{work:x}"))
                    .arg(calls);
            }
        };
        let logs = LogList::of(marks)?;
        call.arg(logs.ids.len());
        for id in &logs.ids {
            call.arg(&id.0.to_be_bytes()[..]);
        }
        let mut value = Vec::with_capacity(32);
        if by_run {
            let mut keys = Vec::new();
            for run in marks.chunk_by(is_followed_by) {
                let Place { log_id, partition, offset, index } = run[0].place;
                value.clear();
                place::encode_record(partition, offset, &mut value);
                keys.clear();
                run.iter().for_each(|mark| keys.extend_from_slice(&mark.key.0));
                call.arg(format!("{:016x}:{partition}", log_id.0))
                    .arg(offset)
                    .arg(logs.position(log_id))
                    .arg(&value[..])
                    .arg(index)
                    .arg(&keys[..]);
            }
        } else {
            for mark in marks {
                value.clear();
                place::encode(logs.position(mark.place.log_id), &mark.place, &mut value);
                call.arg(&mark.key.0[..]).arg(&value[..]);
            }
        }
        let connection = server.primary.connection();
        let answer = tokio::time::timeout(self.timeout, run(script, &call, connection.commands())).await;
        let address = &server.address;
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| explain(address, &error)),
            Err(_) => {
                let ms = self.timeout.as_millis();
                Err(SeenError::Unavailable(format!("Redis at {address}: no answer within {ms} ms")))
            }
        };
        answer.inspect_err(|_| server.primary.renew(&connection))
    }

    async fn restore_call(
        &self,
        rebuild: &Rebuild,
        marks: &[Mark],
        is_last: bool,
    ) -> Result<Restored, SeenError> {
        let Rebuild { progress, nonce: work, calls } = *rebuild;
        let step = Step { progress, work, calls, is_last };
        match self.call(Work::Restore, marks, Some(step)).await? {
            Value::Nil => Ok(Restored::LostAgain),
            _ => Ok(Restored::Whole),
        }
    }
}

/// Runs a script by its hash; a server that does not know it yet is told.
async fn run(script: &Script, call: &Cmd, mut connection: ConnectionManager) -> Result<Value, RedisError> {
    match call.query_async(&mut connection).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            script.load_async(&mut connection).await?;
            call.query_async(&mut connection).await
        }
        answer => answer,
    }
}

/// What it means that a script failed.
fn explain(address: &str, error: &RedisError) -> SeenError {
    let broken = |what: &str| SeenError::Broken(format!("Redis at {address}: {what}"));
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => broken(&error.to_string()),
        ErrorKind::Server(ServerErrorKind::ReadOnly) => unavailable(address, error),
        _ if error.code() == Some("TOOMANYLOGS") => broken(
            "topics were created anew too often for one seen set; set `redis.key_prefix` to another one",
        ),
        _ if error.code() == Some("OOM") => SeenError::Unavailable(format!(
            "Redis at {address} is full: raise its maxmemory (a trace takes about 28 bytes for 1.5 windows)"
        )),
        _ => unavailable(address, error),
    }
}

/// Which script a call runs.
#[derive(Clone, Copy)]
enum Work {
    /// Marks are given by runs: traces of a record that follow each other.
    Mark,
    /// One mark after the other.
    Restore,
    /// Two marks a move: what it is moved from, what it is moved to.
    Shift,
}

/// Whether `next` is the mark of the trace that follows `mark`'s in its record.
fn is_followed_by(mark: &Mark, next: &Mark) -> bool {
    let Place { log_id, partition, offset, index } = mark.place;
    index.checked_add(1).is_some_and(|index| next.place == Place { log_id, partition, offset, index })
}

/// A call of a work that concerns a partition's progress: the marks of a batch, or a rebuild.
#[derive(Clone, Copy)]
struct Step {
    progress: Progress,
    /// Random: which work it is. A call finds what those before have left of it.
    work: u64,
    /// How many calls of it were before.
    calls: u64,
    /// Only the last one sets the progress.
    is_last: bool,
}

/// How many arguments a [`Step`] is.
const STEP_ARGUMENTS: usize = 8;

/// Cuts marks into calls; one without marks where there are none.
fn chunks(marks: &[Mark]) -> impl Iterator<Item = &[Mark]> {
    let none = marks.is_empty().then_some(marks);
    none.into_iter().chain(marks.chunks(MAX_MARKS_PER_CALL))
}

/// The log ids of a call, which its places name by position.
struct LogList {
    ids: Vec<LogId>,
}

impl LogList {
    fn of(marks: &[Mark]) -> Result<Self, SeenError> {
        let mut ids: Vec<LogId> = Vec::new();
        for mark in marks {
            // Nearly always one, and the one of the mark before.
            if ids.last() != Some(&mark.place.log_id) && !ids.contains(&mark.place.log_id) {
                ids.push(mark.place.log_id);
            }
        }
        if ids.len() > usize::from(u8::MAX) {
            return Err(SeenError::Broken("more than 255 log ids in one batch of marks".into()));
        }
        Ok(Self { ids })
    }

    /// Counted from 1, as Lua does.
    fn position(&self, id: LogId) -> u8 {
        self.ids.iter().position(|other| *other == id).map_or(0, |at| at as u8 + 1)
    }
}

/// Adds a call's answer to `first`; `false` when marks were lost.
fn read_answer(answer: Value, marks: &[Mark], first: &mut Vec<Place>) -> Result<bool, SeenError> {
    let unexpected = || SeenError::Broken("the marking script answered something unexpected".into());
    let answers = match answer {
        Value::Nil => return Ok(false),
        Value::Array(answers) => answers,
        _ => return Err(unexpected()),
    };
    let mut answers = answers.into_iter();
    let logs = answers.next().and_then(read_logs).ok_or_else(unexpected)?;
    let begin = first.len();
    first.extend(marks.iter().map(|mark| mark.place));
    while let Some(position) = answers.next() {
        let (Value::Int(position), Some(Value::BulkString(value))) = (position, answers.next()) else {
            return Err(unexpected());
        };
        let place = usize::try_from(position).ok().and_then(|position| first[begin..].get_mut(position));
        *place.ok_or_else(unexpected)? = place::decode(&logs, &value).ok_or_else(unexpected)?;
    }
    Ok(true)
}

/// The set's numbers of log ids: id and number in turn.
fn read_logs(answer: Value) -> Option<HashMap<u8, LogId>> {
    let flat: Vec<Vec<u8>> = redis::from_redis_value(answer).ok()?;
    flat.chunks_exact(2)
        .map(|pair| {
            let id = u64::from_be_bytes(pair[0].as_slice().try_into().ok()?);
            Some((std::str::from_utf8(&pair[1]).ok()?.parse().ok()?, LogId(id)))
        })
        .collect()
}

#[async_trait]
impl SeenSet for RedisSeen {
    async fn mark(&self, marks: Vec<Mark>, progress: Option<Progress>) -> Result<Marked, SeenError> {
        let mut first = Vec::with_capacity(marks.len());
        if marks.is_empty() && progress.is_none() {
            return Ok(Marked::First(first));
        }
        let work = rand::random();
        let last = (marks.len().div_ceil(MAX_MARKS_PER_CALL) as u64).saturating_sub(1);
        for (calls, chunk) in (0..).zip(chunks(&marks)) {
            let step = progress.map(|progress| Step { progress, work, calls, is_last: calls == last });
            let answer = self.call(Work::Mark, chunk, step).await?;
            if !read_answer(answer, chunk, &mut first)? {
                return Ok(Marked::Lost);
            }
        }
        Ok(Marked::First(first))
    }

    async fn restore(&self, rebuild: &mut Rebuild, marks: Vec<Mark>) -> Result<Restored, SeenError> {
        for chunk in chunks(&marks) {
            if self.restore_call(rebuild, chunk, false).await? == Restored::LostAgain {
                return Ok(Restored::LostAgain);
            }
            rebuild.calls += 1;
        }
        Ok(Restored::Whole)
    }

    async fn end_rebuild(&self, rebuild: Rebuild) -> Result<Restored, SeenError> {
        self.restore_call(&rebuild, &[], true).await
    }

    async fn shift(&self, moves: Vec<Move>) -> Result<(), SeenError> {
        for chunk in moves.chunks(MAX_MARKS_PER_CALL / 2) {
            let pair =
                |Move { key, from, to }: &Move| [from, to].map(|place| Mark { key: *key, place: *place });
            let marks: Vec<Mark> = chunk.iter().flat_map(pair).collect();
            self.call(Work::Shift, &marks, None).await?;
        }
        Ok(())
    }

    /// Redis expires the hashes by itself; how much memory they take is worth a look as often.
    async fn expire(&self) -> Result<(), SeenError> {
        let server = self.server()?;
        server::tell_memory(&mut server.primary.connection().commands(), &server.address).await
    }
}
