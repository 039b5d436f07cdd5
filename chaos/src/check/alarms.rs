//! Every detection and every guard action exactly once, in the topics and in the tables; the loop, the
//! bursts and the refused calls have each raised one alarm.

use std::collections::{BTreeMap, BTreeSet};

use panopticon_proto::log::{DeadLetter, Detection, GuardAction};
use serde::Deserialize;

use super::Finding;
use crate::{
    bed::Bed,
    call::App,
    episodes::{BURST, DENIED, KILLED, LOOP, SPRAYED_FROM},
    poison,
    topics::{self, Record},
};

/// Partition and offset.
type Place = (i32, i64);

/// By name, the places where something is.
type Places = BTreeMap<String, Vec<Place>>;

#[derive(Deserialize)]
struct Placed {
    name: String,
    log_partition: i32,
    log_offset: i64,
}

#[derive(Deserialize)]
struct Subject {
    subject: String,
}

pub(super) async fn check(bed: &Bed) -> anyhow::Result<Vec<Finding>> {
    let (detections, actions, letters, poison) = read(bed).await?;
    let told: Places = by_name(&detections, |d: &Detection| format!("{} {}", d.detection_id, d.phase));
    let acted: Places = by_name(&actions, |a: &GuardAction| a.action_id.clone());
    let stored_detections = stored(bed, "detections", "concat(detection_id, ' ', phase)").await?;
    let stored_actions = stored(bed, "guard_actions", "action_id").await?;
    let started = Started::of(&detections);
    let expected = expected(bed).await?;
    Ok(vec![
        once("every detection is in the topic once for each phase", &told),
        same("every detection is in `detections` once for each phase", &told, &stored_detections),
        once("every guard action is in the topic once", &acted),
        same("every guard action is in `guard_actions` once", &acted, &stored_actions),
        answered("every detection has one guard action", &detections, &actions),
        started.as_expected(&expected),
        kills(&actions),
        dead_letters(&letters, &poison),
    ])
}

/// With the dead letters that must be there.
type Read =
    (Vec<(Record, Detection)>, Vec<(Record, GuardAction)>, Vec<(Record, DeadLetter)>, BTreeSet<String>);

async fn read(bed: &Bed) -> anyhow::Result<Read> {
    let (brokers, poisoned) = (bed.brokers.clone(), *bed.poisoned.lock());
    tokio::task::spawn_blocking(move || {
        Ok((
            messages(&brokers, "detections")?,
            messages(&brokers, "guard-actions")?,
            messages(&brokers, "dead-letters")?,
            if poisoned { poison::expected(&brokers)? } else { BTreeSet::new() },
        ))
    })
    .await?
}

/// The messages of a topic, poison left out.
fn messages<M: prost::Message + Default>(brokers: &str, topic: &str) -> anyhow::Result<Vec<(Record, M)>> {
    let records = topics::read(brokers, topic)?.into_iter();
    Ok(records.filter_map(|record| Some((record.clone(), M::decode(&record.payload[..]).ok()?))).collect())
}

fn by_name<M>(messages: &[(Record, M)], name: impl Fn(&M) -> String) -> Places {
    let mut places = Places::new();
    for (record, message) in messages {
        places.entry(name(message)).or_default().push((record.partition, record.offset));
    }
    places
}

async fn stored(bed: &Bed, table: &str, name: &str) -> anyhow::Result<Places> {
    let sql = format!("SELECT {name} AS name, log_partition, toInt64(log_offset) AS log_offset FROM {table}");
    let mut places = Places::new();
    for row in bed.sql.rows::<Placed>(&sql).await? {
        places.entry(row.name).or_default().push((row.log_partition, row.log_offset));
    }
    Ok(places)
}

fn once(promise: &'static str, places: &Places) -> Finding {
    let again = places.iter().filter(|(_, places)| places.len() != 1);
    let broken = again.map(|(name, places)| format!("{name} at {places:?}")).collect();
    Finding::new(promise, places.len(), broken)
}

/// The table holds what the topic holds, at the same places. The table was read after the topic: what lies behind
/// all that was read of a partition has come meanwhile, and says nothing; of a partition of which nothing was read
/// all has.
fn same(promise: &'static str, topic: &Places, table: &Places) -> Finding {
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    for (partition, offset) in topic.values().flatten() {
        let end = ends.entry(*partition).or_default();
        *end = (*end).max(*offset);
    }
    let was_read = |(partition, offset): &&Place| ends.get(partition).is_some_and(|end| offset <= end);
    let names: BTreeSet<&String> = topic.keys().chain(table.keys()).collect();
    let mut broken = Vec::new();
    for name in &names {
        let told = topic.get(*name).cloned().unwrap_or_default();
        let stored: Vec<Place> = table.get(*name).into_iter().flatten().filter(was_read).copied().collect();
        if told != stored {
            broken.push(format!("{name}: topic {told:?}, table {stored:?}"));
        }
    }
    Finding::new(promise, names.len(), broken)
}

fn answered(
    promise: &'static str,
    detections: &[(Record, Detection)],
    actions: &[(Record, GuardAction)],
) -> Finding {
    let mut answers: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (_, action) in actions {
        if let Some(detection) = &action.detection {
            *answers.entry((detection.detection_id.clone(), detection.phase.clone())).or_default() += 1;
        }
    }
    let count = |d: &Detection| answers.get(&(d.detection_id.clone(), d.phase.clone())).copied().unwrap_or(0);
    let broken = detections
        .iter()
        .filter(|(_, detection)| count(detection) != 1)
        .map(|(r, d)| {
            format!("{} {} at {}/{}: {} actions", d.detection_id, d.phase, r.partition, r.offset, count(d))
        })
        .collect();
    Finding::new(promise, detections.len(), broken)
}

/// Who raised which alarm, with the detections.
struct Started(BTreeMap<String, Vec<String>>);

impl Started {
    fn of(detections: &[(Record, Detection)]) -> Self {
        let mut started: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let ours = |d: &Detection| ["rate_limit", "failed_auth"].contains(&d.rule.as_str());
        for (record, d) in detections.iter().filter(|(_, d)| d.phase == "started" && ours(d)) {
            let whose = if d.user_sub.is_empty() { &d.source_ip } else { &d.user_sub };
            let subject = format!("{} {} {whose}", d.rule, d.client_id);
            let at = jiff::Timestamp::from_microsecond(d.detected_at).unwrap_or_default();
            let place = format!("{} detected {at} at {}/{}", d.detection_id, record.partition, record.offset);
            started.entry(subject).or_default().push(place);
        }
        Self(started)
    }

    fn as_expected(&self, expected: &BTreeMap<String, usize>) -> Finding {
        let none = Vec::new();
        let subjects: BTreeSet<&String> = self.0.keys().chain(expected.keys()).collect();
        let broken = subjects
            .iter()
            .filter_map(|subject| {
                let raised = self.0.get(*subject).unwrap_or(&none);
                let wanted = expected.get(*subject).copied().unwrap_or(0);
                (raised.len() != wanted).then(|| format!("{subject}: expected {wanted}, raised {raised:?}"))
            })
            .collect();
        Finding::new(
            "each episode of breaking a limit raised one alarm, and nobody else did",
            subjects.len(),
            broken,
        )
    }
}

#[derive(Deserialize)]
struct Counted {
    user_sub: String,
    /// Event times in microseconds, in order.
    times: Vec<i64>,
}

/// Calls of one tool that are allowed in [`WINDOW_MICROS`]; all episodes here are of one tool.
const ALLOWED_CALLS: usize = 20;
const WINDOW_MICROS: i64 = 60_000_000;

/// Who has broken a limit how often, by the rows that are not late.
async fn expected(bed: &Bed) -> anyhow::Result<BTreeMap<String, usize>> {
    let app = App::Watched.id();
    let of_app = format!("FROM traces WHERE client_id = '{app}' AND NOT late");
    let calls = format!(
        "SELECT user_sub, arraySort(groupArray(toUnixTimestamp64Micro(started_at) + duration_ms * 1000)) AS times \
         {of_app} AND (user_sub = '{LOOP}' OR user_sub LIKE '{BURST}%') GROUP BY user_sub, tool"
    );
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    for counted in bed.sql.rows::<Counted>(&calls).await? {
        *expected.entry(format!("rate_limit {app} {}", counted.user_sub)).or_default() +=
            episodes(&counted.times);
    }
    // Ten minutes are longer than any pause of theirs.
    let refused = format!(
        "SELECT concat('failed_auth {app} ', user_sub) AS subject {of_app} \
         AND status = 'denied' AND (user_sub = '{LOOP}' OR user_sub LIKE '{DENIED}%') GROUP BY user_sub \
         HAVING count() >= 5 UNION ALL \
         SELECT concat('failed_auth {app} ', source_ip) {of_app} \
         AND status = 'denied' AND source_ip = '{SPRAYED_FROM}' GROUP BY source_ip HAVING count() >= 5"
    );
    expected.extend(bed.sql.rows::<Subject>(&refused).await?.into_iter().map(|row| (row.subject, 1)));
    expected.retain(|_, episodes| *episodes > 0);
    Ok(expected)
}

/// How many episodes calls at these times make: windows over the limit that are less than a window's width
/// apart belong together.
fn episodes(times: &[i64]) -> usize {
    let mut episodes = 0;
    let mut last_over: Option<i64> = None;
    for (index, time) in times.iter().enumerate() {
        let is_over = index >= ALLOWED_CALLS && times[index - ALLOWED_CALLS] > time - WINDOW_MICROS;
        if is_over {
            episodes += usize::from(last_over.is_none_or(|last| time - last >= WINDOW_MICROS));
            last_over = Some(*time);
        }
    }
    episodes
}

/// Every kill and its end is told once.
fn kills(actions: &[(Record, GuardAction)]) -> Finding {
    let mut told = Places::new();
    for (record, action) in actions {
        let Some(kill) = &action.kill else { continue };
        if kill.user_sub.starts_with(KILLED) {
            let name = format!("{} {}", kill.user_sub, kill.state);
            told.entry(name).or_default().push((record.partition, record.offset));
        }
    }
    once("every kill and every end of one is told once", &told)
}

/// The poison, once for each stage that met it, and nothing else.
fn dead_letters(letters: &[(Record, DeadLetter)], expected: &BTreeSet<String>) -> Finding {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for (_, letter) in letters {
        let place = (letter.partition.into(), letter.offset as i64);
        let what = if letter.payload == poison::PAYLOAD { "" } else { letter.error.as_str() };
        *found.entry(poison::name(&letter.topic, place, &letter.stage) + what).or_default() += 1;
    }
    let names: BTreeSet<&String> = found.keys().chain(expected).collect();
    let broken = names
        .iter()
        .filter(|name| found.get(**name).copied().unwrap_or(0) != usize::from(expected.contains(**name)))
        .map(|name| format!("{name}: {} letters", found.get(*name).copied().unwrap_or(0)))
        .collect();
    Finding::new(
        "each poison record is one dead letter of each stage that met it, and no other",
        names.len(),
        broken,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(times: impl IntoIterator<Item = i64>) -> Vec<i64> {
        times.into_iter().map(|second| second * 1_000_000).collect()
    }

    #[test]
    fn a_table_is_held_against_what_was_read_of_the_topic() {
        let at = |places: &[(&str, Place)]| -> Places {
            places.iter().map(|(name, place)| ((*name).to_owned(), vec![*place])).collect()
        };
        let topic = at(&[("a", (0, 5)), ("b", (1, 2))]);
        assert!(same("", &topic, &topic).holds());
        let later = at(&[("a", (0, 5)), ("b", (1, 2)), ("c", (0, 6))]);
        assert!(same("", &topic, &later).holds(), "it has come since");
        for wrong in [
            at(&[("a", (0, 5))]),
            at(&[("a", (0, 4)), ("b", (1, 2))]),
            at(&[("a", (0, 5)), ("b", (1, 2)), ("c", (0, 4))]),
        ] {
            assert!(!same("", &topic, &wrong).holds(), "{wrong:?}");
        }
        let twice = Places::from([("a".to_owned(), vec![(0, 5), (0, 5)]), ("b".to_owned(), vec![(1, 2)])]);
        assert!(!same("", &topic, &twice).holds());
    }

    #[test]
    fn windows_over_the_limit_within_a_minute_of_each_other_are_one_episode() {
        assert_eq!(episodes(&seconds(0..20)), 0);
        assert_eq!(episodes(&seconds(0..21)), 1);
        assert_eq!(episodes(&seconds((0..30).chain(60..90))), 1, "over until 29, and again from 60 on");
        assert_eq!(episodes(&seconds((0..30).chain(90..120))), 2);
    }
}
