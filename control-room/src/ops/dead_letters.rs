//! Dead letters whose records are appended again.
//!
//! Which letters were replayed stands in the control table, written in the commit that appends the record:
//! so a record is appended once, however often and by whomever it is asked for.

use panopticon_core::{
    api::DeadLetterReplayAnswer,
    control::{Change, ControlState, key},
    log::{Output, Record, Replay, TopicInfo},
    proto::{control::ReplayedLetter, log::DeadLetter},
    time::Time,
    topic::{Cleanup, Topic},
};
use serde_json::json;

use super::{Decision, Refusal, RefusalKind};

/// The most replayed letters that are remembered at a time: every process holds them in memory.
pub const MAX_REPLAYED: usize = 20_000;

/// A letter as it lies in `dead-letters`.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its offset there.
    pub offset: u64,
    /// The first offset that is still there.
    pub low: u64,
    /// What it says.
    pub letter: DeadLetter,
}

/// Appends the record of a letter again, to its `topic`, for the stage that could not take it. A letter that
/// was replayed stays as it is and is answered again.
pub fn replay(
    state: &ControlState,
    now: Time,
    found: &Found,
    topic: Option<(Topic, TopicInfo)>,
) -> Decision<(DeadLetterReplayAnswer, bool)> {
    let letter = &found.letter;
    if let Some(known) = state.replayed(&letter.dead_letter_id) {
        return Ok((None, (answer(letter, Time::from_micros(known.replayed_at)), false)));
    }
    let Some((topic, _)) = topic.filter(|(_, info)| letter.partition < info.partitions) else {
        let place = format!("{}-{}", letter.topic, letter.partition);
        return Err(Refusal::new(RefusalKind::Conflict, format!("there is no partition {place} any more")));
    };
    let forgotten: Vec<&ReplayedLetter> =
        state.all_replayed().filter(|replayed| replayed.letter_offset < found.low).collect();
    if state.all_replayed().len() - forgotten.len() >= MAX_REPLAYED {
        return Err(Refusal::new(
            RefusalKind::LimitReached,
            format!(
                "{MAX_REPLAYED} dead letters were replayed and are still listed; there is room when the \
                 oldest expire (`retention.log_hours`)"
            ),
        ));
    }
    let mut change = Change::put(
        "dead_letter.replay",
        "",
        key("replayed", &[&letter.dead_letter_id]),
        Some(&ReplayedLetter {
            dead_letter_id: letter.dead_letter_id.clone(),
            replayed_at: now.micros(),
            letter_offset: found.offset,
            topic: topic.name().to_owned(),
            partition: letter.partition,
        }),
    );
    change.target.clone_from(&letter.dead_letter_id);
    change.detail = json!({
        "topic": letter.topic, "partition": letter.partition, "offset": letter.offset, "stage": letter.stage,
    });
    change.records.push(Output { topic, partition: letter.partition, record: record(letter, topic) });
    for gone in forgotten {
        change.entries.push((key("replayed", &[&gone.dead_letter_id]), None));
        change.records.extend(leftover(gone));
    }
    Ok((Some(change), (answer(letter, now), true)))
}

fn answer(letter: &DeadLetter, replayed_at: Time) -> DeadLetterReplayAnswer {
    DeadLetterReplayAnswer {
        dead_letter_id: letter.dead_letter_id.clone(),
        topic: letter.topic.clone(),
        partition: letter.partition,
        stage: letter.stage.clone(),
        replayed_at,
    }
}

/// The original bytes, for one stage.
fn record(letter: &DeadLetter, topic: Topic) -> Record {
    Record {
        // Compaction would take this for the latest value of the original key.
        key: match topic.cleanup() {
            Cleanup::Delete => letter.key.clone(),
            Cleanup::Compact => key_in_table(&letter.dead_letter_id).into(),
        },
        payload: Some(letter.payload.clone()),
        replay: Some(Replay {
            stage: letter.stage.clone(),
            first_offset: letter.first_offset.unwrap_or(letter.offset),
        }),
    }
}

fn key_in_table(dead_letter_id: &str) -> String {
    key("replayed", &[dead_letter_id])
}

/// What takes the record of a forgotten replay out of a compacted topic; others forget by themselves.
fn leftover(gone: &ReplayedLetter) -> Option<Output> {
    let topic = Topic::parse(&gone.topic).filter(|topic| topic.cleanup() == Cleanup::Compact)?;
    let record = Record::tombstone(key_in_table(&gone.dead_letter_id));
    Some(Output { topic, partition: gone.partition, record })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use panopticon_core::ids::LogId;
    use prost::Message as _;

    use super::*;

    fn found(id: &str, topic: Topic, offset: u64) -> Found {
        let letter = DeadLetter {
            dead_letter_id: id.to_owned(),
            topic: topic.name().to_owned(),
            partition: 1,
            offset,
            stage: "store".to_owned(),
            key: Bytes::from_static(b"key"),
            payload: Bytes::from_static(b"bytes"),
            ..DeadLetter::default()
        };
        Found { offset: 40, low: 30, letter }
    }

    fn cut(found: &Found, partitions: u32) -> Option<(Topic, TopicInfo)> {
        Some((Topic::parse(&found.letter.topic)?, TopicInfo { partitions, log_id: LogId(1) }))
    }

    fn decide(state: &ControlState, found: &Found) -> Decision<(DeadLetterReplayAnswer, bool)> {
        replay(state, Time::from_micros(7), found, cut(found, 2))
    }

    fn note(state: &mut ControlState, id: &str, topic: Topic, letter_offset: u64) {
        let replayed = ReplayedLetter {
            dead_letter_id: id.to_owned(),
            replayed_at: 3,
            letter_offset,
            topic: topic.name().to_owned(),
            partition: 1,
        };
        state.apply(key("replayed", &[id]).as_bytes(), Some(&replayed.encode_to_vec()));
    }

    #[test]
    fn a_letter_is_replayed_once_and_its_answer_stays() {
        let mut state = ControlState::default();
        let letter = found("a", Topic::Traces, 5);
        let (change, (first, is_new)) = decide(&state, &letter).unwrap();
        let change = change.unwrap();
        assert!(is_new && change.records.len() == 1);
        let record = &change.records[0].record;
        assert_eq!((&record.key[..], record.bytes()), (&b"key"[..], &b"bytes"[..]));
        assert_eq!(record.replay, Some(Replay { stage: "store".to_owned(), first_offset: 5 }));
        for (key, value) in change.entries {
            state.apply(key.as_bytes(), value.as_deref());
        }
        let (change, (again, is_new)) =
            replay(&state, Time::from_micros(99), &letter, cut(&letter, 2)).unwrap();
        assert!(change.is_none() && !is_new);
        assert_eq!(again.replayed_at, first.replayed_at);
    }

    #[test]
    fn a_record_that_fails_again_keeps_the_place_that_its_marks_name() {
        let mut letter = found("b", Topic::TracesRaw, 9);
        letter.letter.first_offset = Some(5);
        let (change, _) = decide(&ControlState::default(), &letter).unwrap();
        assert_eq!(change.unwrap().records[0].record.replay.as_ref().unwrap().first_offset, 5);
    }

    #[test]
    fn no_newer_value_of_a_compacted_topic_is_overwritten() {
        let (change, _) = decide(&ControlState::default(), &found("c", Topic::WebhookDeliveries, 5)).unwrap();
        assert_eq!(change.unwrap().records[0].record.key, "replayed/c");
    }

    #[test]
    fn what_is_remembered_goes_with_the_letters() {
        let mut state = ControlState::default();
        note(&mut state, "old", Topic::WebhookDeliveries, 29);
        note(&mut state, "young", Topic::WebhookDeliveries, 30);
        let change = decide(&state, &found("d", Topic::Traces, 5)).unwrap().0.unwrap();
        let gone: Vec<_> = change.entries.iter().filter(|(_, value)| value.is_none()).collect();
        assert_eq!((gone.len(), gone[0].0.as_str()), (1, "replayed/old"));
        assert_eq!(change.records[1].record, Record::tombstone("replayed/old"));
        assert_eq!(change.records.len(), 2);
    }

    #[test]
    fn a_partition_that_is_not_there_is_refused() {
        let state = ControlState::default();
        let letter = found("e", Topic::Traces, 5);
        for topic in [cut(&letter, 1), None] {
            let refused = replay(&state, Time::EPOCH, &letter, topic).unwrap_err();
            assert_eq!(refused.kind, RefusalKind::Conflict);
        }
    }
}
