//! The bursts of one entity: when one begins, goes on and ends, and what is said of it.

use std::time::Duration;

use panopticon_core::{
    stage::{Findings, MAX_DELAY},
    store::Activity,
    time::Time,
    trace::WireError,
};
use panopticon_proto::log::{Detection, Window};
use prost::Message as _;
use uuid::Uuid;

use super::{
    level::Level,
    pace::{BUCKET_SECS, Over, Pace},
    rhythm::Rhythm,
};
use crate::{score::score, settings::Settings};

/// How long an entity is remembered after its newest call, for each of its calls, and at most: so a flood of
/// names that call once makes room for itself.
const KEPT_A_CALL: Duration = Duration::from_secs(100 * 86_400);
const KEPT_CALLS: u16 = 10;
/// So many calls in a quarter of an hour may all have been made at once. More are taken for made at several times,
/// at most so many: in production traffic at most .16 of them came in ten seconds, and .27 in a minute.
const AT_ONCE: u32 = 32;
const MOST_TIMES: u32 = 4;
/// Detections are UUIDv5 in this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x8c41_0d7e_96b3_5a28_b1f5_67e2_3a9d_c054);

/// Calls as the rule sees them.
pub(super) struct Seen<'a> {
    pub(super) app: &'a str,
    /// Empty where it is about a tool, and for calls without a user.
    pub(super) user: &'a str,
    /// Empty where it is about a user.
    pub(super) tool: &'a str,
    /// The tool of the last call, to name in the explanation.
    pub(super) example: &'a str,
    pub(super) event_id: Uuid,
    pub(super) at: Time,
    pub(super) calls: u32,
    pub(super) late: bool,
    pub(super) replay: bool,
    pub(super) settings: &'a Settings,
}

/// What the rule remembers of one entity.
#[derive(Debug, Default)]
pub struct Burst {
    pace: Pace,
    /// The last burst; most entities never had one.
    told: Option<Box<Told>>,
}

/// A burst that was told.
#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    /// The bucket with which it ends, if no further window is over its limit, or has ended: windows that
    /// end before begin no other.
    #[prost(uint32, tag = "1")]
    until: u32,
    /// The message that told its beginning, while it lasts.
    #[prost(message, optional, tag = "2")]
    started: Option<Detection>,
}

/// Buckets in a quarter of an hour.
const QUARTER: u32 = 90;

fn bucket_of(at: Time) -> u32 {
    u32::try_from(at.secs().div_euclid(BUCKET_SECS)).unwrap_or(0)
}

fn start_of(bucket: u32) -> Time {
    Time::from_secs(i64::from(bucket) * BUCKET_SECS)
}

impl Burst {
    /// Takes in calls; answers whether a burst began or ended.
    pub(super) fn observe(&mut self, seen: &Seen<'_>, findings: &mut Findings) -> bool {
        let overs = match self.pace.add(bucket_of(seen.at), seen.calls, seen.late) {
            Ok(Some(overs)) => overs,
            Ok(None) => return false,
            Err(_) if seen.replay || seen.late => return false,
            Err(_) => {
                metrics::counter!("panopticon_rule_disordered_total", "rule" => "burst").increment(1);
                return false;
            }
        };
        if let Some(told) = &mut self.told
            && told.started.is_some()
            && overs.first.end < told.until
        {
            told.until = told.until.max(overs.until);
            return false;
        }
        if seen.replay {
            return false;
        }
        let ended = self.close(findings);
        // Of several calls at once, the one that reached the limit decides.
        let before = overs.first.calls - seen.calls.min(overs.first.calls);
        let first = Over { calls: overs.first.limit.max(before + 1), ..overs.first };
        let monthly = monthly(&first);
        let quiet = !seen.settings.burst || !seen.settings.lets_through(seen.user, monthly);
        if quiet || self.told.as_ref().is_some_and(|told| overs.last_end < told.until) {
            return ended;
        }
        let started = detection(seen, &first, monthly);
        findings.detections.push(started.clone());
        self.told = Some(Box::new(Told { until: overs.until, started: Some(started) }));
        true
    }

    /// Takes in the calls of a quarter of an hour of the past: as usual, and as dense as they may have been. Rather
    /// silent than wrong.
    pub(super) fn learn(&mut self, activity: &Activity) {
        let (since, calls) = (bucket_of(activity.since), u32::try_from(activity.traces).unwrap_or(u32::MAX));
        let times = calls.div_ceil(AT_ONCE).clamp(1, MOST_TIMES);
        for n in 0..times {
            let at_once = calls / times + u32::from(n < calls % times);
            self.pace.add_usual(since + n * QUARTER / times, at_once);
        }
    }

    /// Ends what has ended by `now`.
    pub(super) fn end(&mut self, now: Time, findings: &mut Findings) -> bool {
        self.ends_at().is_some_and(|end| end <= now) && self.close(findings)
    }

    fn close(&mut self, findings: &mut Findings) -> bool {
        let Some(told) = &mut self.told else { return false };
        let Some(started) = told.started.take() else { return false };
        let explanation = calm(&started);
        findings.detections.push(Detection {
            phase: "ended".to_owned(),
            ended_at: start_of(told.until).micros(),
            explanation,
            ..started
        });
        true
    }

    pub(super) fn ends_at(&self) -> Option<Time> {
        let open = self.told.as_ref().filter(|told| told.started.is_some());
        open.map(|told| start_of(told.until).plus(MAX_DELAY))
    }

    pub(super) fn fades_at(&self) -> Time {
        start_of(self.pace.newest()).plus(KEPT_A_CALL * u32::from(self.pace.calls().min(KEPT_CALLS)))
    }
}

/// How often an app has to expect a burst like this in 30 days. The highest of a heavy tail is passed
/// `n`-fold in as long as it took to come about with probability `n⁻³`; the factor is what the commits of
/// five projects over twelve years show.
fn monthly(over: &Over) -> f64 {
    const FACTOR: f64 = 4.0;
    const SHORTEST_DAYS: f64 = 2.0;
    let days = f64::from(over.history) / 8_640.0;
    let times = f64::from(over.calls) / f64::from(over.highest.max(1));
    FACTOR * times.max(1.0).powi(-3) * 30.0 / days.max(SHORTEST_DAYS)
}

fn detection(seen: &Seen<'_>, over: &Over, monthly: f64) -> Detection {
    let Over { calls, highest, .. } = *over;
    let span = span(over.width.buckets);
    let who = match (seen.tool, seen.user) {
        ("", "") => format!("{calls} calls were made without a user in {span}"),
        ("", user) => format!("{user} called {} and others {calls} times in {span}", seen.example),
        (tool, _) => format!("{tool} was called {calls} times in {span}"),
    };
    let since = since(over.history);
    let explanation = match over.at_this_hour {
        true => format!("{who}; at this hour it has never passed {highest}, as {since} of calls show"),
        false => format!("{who}; in {since} of calls it has never passed {highest}"),
    };
    let kind = if seen.tool.is_empty() { "by_user" } else { "by_tool" };
    // A tool's calls come in groups, which may be cut differently another time: its bursts are told apart
    // by where they begin.
    let name = match seen.tool {
        "" => format!("burst/{kind}/{}/{}/{}", seen.app, seen.user, seen.event_id),
        tool => format!("burst/{kind}/{}/{tool}/{}/{}", seen.app, over.end, over.width.buckets),
    };
    let start = start_of(over.start());
    Detection {
        detection_id: Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string(),
        rule: "burst".to_owned(),
        kind: kind.to_owned(),
        client_id: seen.app.to_owned(),
        user_sub: seen.user.to_owned(),
        tool: seen.tool.to_owned(),
        severity: severity(calls, highest).to_owned(),
        score: score(monthly),
        detected_at: seen.at.micros(),
        deciding_event_id: if seen.event_id.is_nil() { String::new() } else { seen.event_id.to_string() },
        window: Some(Window { start: start.micros(), end: seen.at.micros() }),
        observed: f64::from(calls),
        expected: f64::from(highest),
        explanation,
        phase: "started".to_owned(),
        ..Detection::default()
    }
}

/// A burst of a handful of calls is worth a look, one of hundreds an action.
fn severity(calls: u32, highest: u32) -> &'static str {
    match calls.saturating_sub(highest) {
        0..20 => "low",
        20..100 => "medium",
        100..1_000 => "high",
        _ => "critical",
    }
}

fn span(buckets: u32) -> String {
    match i64::from(buckets) * BUCKET_SECS {
        secs @ 0..=60 => format!("{secs} s"),
        secs @ 61..=3_599 => format!("{} minutes", secs / 60),
        _ => "an hour".to_owned(),
    }
}

fn since(buckets: u32) -> String {
    match i64::from(buckets) * BUCKET_SECS {
        secs @ 0..7_200 => format!("{} minutes", secs / 60),
        secs @ 7_200..172_800 => format!("{} hours", secs / 3_600),
        secs => format!("{} days", secs / 86_400),
    }
}

fn calm(started: &Detection) -> String {
    let whose = match (started.tool.as_str(), started.user_sub.as_str()) {
        ("", "") => "the calls without a user",
        ("", user) => user,
        (tool, _) => tool,
    };
    format!("{whose} kept within what is usual again")
}

/// How it is written down.
#[derive(Clone, PartialEq, prost::Message)]
struct BurstState {
    #[prost(uint32, repeated, tag = "1")]
    ring: Vec<u32>,
    #[prost(uint32, tag = "2")]
    newest: u32,
    #[prost(uint32, tag = "3")]
    first: u32,
    #[prost(uint32, repeated, tag = "4")]
    blocks: Vec<u32>,
    #[prost(uint32, repeated, tag = "5")]
    hours: Vec<u32>,
    #[prost(uint32, tag = "6")]
    last_burst: u32,
    #[prost(uint32, tag = "7")]
    calls: u32,
    #[prost(uint32, tag = "8")]
    days: u32,
    /// `highest` and `peaks`, in this order.
    #[prost(bytes = "vec", tag = "9")]
    levels: Vec<u8>,
    #[prost(uint32, tag = "10")]
    strikes: u32,
    #[prost(uint32, tag = "11")]
    flags: u32,
    /// `highest`, `peaks` and `usual` of the rhythm, in this order; empty where there is none.
    #[prost(bytes = "vec", tag = "12")]
    rhythm: Vec<u8>,
    #[prost(message, optional, tag = "13")]
    told: Option<Told>,
}

impl Burst {
    pub(super) fn encode(&self) -> Vec<u8> {
        let pace = &self.pace;
        let levels = pace.highest.iter().chain(&pace.peaks).flatten();
        let rhythm = pace
            .rhythm
            .iter()
            .flat_map(|rhythm| rhythm.highest.iter().chain(&rhythm.peaks).chain(&rhythm.usual));
        BurstState {
            ring: pace.ring.iter().map(|calls| u32::from(*calls)).collect(),
            newest: pace.newest,
            first: pace.first,
            blocks: pace.blocks.map(u32::from).to_vec(),
            hours: pace.hours.to_vec(),
            last_burst: pace.last_burst.into(),
            calls: pace.calls.into(),
            days: pace.days.into(),
            levels: levels.map(|level| level.0).collect(),
            rhythm: rhythm.map(|level| level.0).collect(),
            strikes: pace.strikes.into(),
            flags: pace.flags.into(),
            told: self.told.as_deref().cloned(),
        }
        .encode_to_vec()
    }

    pub(super) fn decode(state: &[u8]) -> Result<Self, WireError> {
        let state = BurstState::decode(state)?;
        let mut levels = state.levels.into_iter().map(Level);
        let mut pair = || array(levels.by_ref().take(2));
        let rhythm = (!state.rhythm.is_empty()).then(|| {
            let mut levels = state.rhythm.into_iter().map(Level);
            Box::new(Rhythm {
                highest: array(levels.by_ref().take(16)),
                peaks: array(levels.by_ref().take(2)),
                usual: array(levels),
            })
        });
        let pace = Pace {
            ring: array(state.ring.into_iter().map(|calls| calls as u16)),
            newest: state.newest,
            first: state.first,
            blocks: array(state.blocks.into_iter().map(|calls| calls as u16)),
            hours: array(state.hours),
            last_burst: state.last_burst as u16,
            calls: state.calls as u16,
            days: state.days as u16,
            highest: [pair(), pair(), pair(), pair()],
            peaks: [pair(), pair()],
            rhythm,
            strikes: state.strikes as u8,
            flags: state.flags as u8,
        };
        Ok(Self { pace, told: state.told.map(Box::new) })
    }
}

fn array<T: Copy + Default, const N: usize>(values: impl IntoIterator<Item = T>) -> [T; N] {
    let mut array = [T::default(); N];
    for (place, value) in array.iter_mut().zip(values) {
        *place = value;
    }
    array
}
