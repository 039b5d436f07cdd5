//! The topics' definitions in `infra/kafka/topics.toml`, filled in from the configuration.

use std::collections::BTreeMap;

use panopticon_core::{
    config::Config,
    topic::{Cleanup, Cut, Topic},
};
use serde::Deserialize;

use super::client::RECORD_OVERHEAD_BYTES;

const TOPICS_TOML: &str = include_str!("../../../../infra/kafka/topics.toml");

/// How many replicas survive the loss of a machine without losing what was acknowledged.
pub(super) const SAFE_REPLICATION: u16 = 3;

type Settings = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    all: Settings,
    delete: Settings,
    compact: Settings,
    topics: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    partitions: Partitions,
    cleanup: Policy,
    #[serde(default)]
    settings: Settings,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Partitions {
    Single,
    Configured,
}

impl Partitions {
    const fn cut(self) -> Cut {
        match self {
            Self::Single => Cut::Single,
            Self::Configured => Cut::AsConfigured,
        }
    }
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Policy {
    Delete,
    Compact,
}

impl Policy {
    const fn cleanup(self) -> Cleanup {
        match self {
            Self::Delete => Cleanup::Delete,
            Self::Compact => Cleanup::Compact,
        }
    }
}

/// A topic as it is created.
#[derive(Debug, Clone)]
pub(super) struct Definition {
    pub(super) topic: Topic,
    pub(super) name: String,
    pub(super) partitions: u32,
    pub(super) replication: u16,
    pub(super) settings: BTreeMap<String, String>,
}

/// The definition of every topic for `config`, with `replication` replicas.
pub(super) fn definitions(config: &Config, replication: u16) -> Result<Vec<Definition>, String> {
    let file: File = toml::from_str(TOPICS_TOML).map_err(|error| format!("topics.toml: {error}"))?;
    let min_insync = if replication >= SAFE_REPLICATION { 2 } else { 1 };
    let values = [
        ("{retention_ms}", config.retention.log().as_millis().to_string()),
        ("{max_message_bytes}", (config.kafka.max_record_bytes + RECORD_OVERHEAD_BYTES).to_string()),
        ("{min_insync_replicas}", min_insync.to_string()),
    ];
    let fill =
        |text: &str| values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value));
    let define = |topic: Topic| {
        let entry = file.topics.get(topic.name()).ok_or_else(|| format!("topics.toml lacks `{topic}`"))?;
        let policy = match entry.cleanup {
            Policy::Delete => &file.delete,
            Policy::Compact => &file.compact,
        };
        let settings = file.all.iter().chain(policy).chain(&entry.settings);
        let agrees = entry.partitions.cut() == topic.cut() && entry.cleanup.cleanup() == topic.cleanup();
        if !agrees {
            return Err(format!("topics.toml defines `{topic}` otherwise than its stages expect"));
        }
        Ok(Definition {
            topic,
            name: format!("{}{topic}", config.kafka.topic_prefix),
            partitions: match entry.partitions {
                Partitions::Single => 1,
                Partitions::Configured => config.kafka.partitions.max(1),
            },
            replication,
            settings: settings.map(|(name, value)| (name.clone(), fill(value))).collect(),
        })
    };
    Topic::ALL.into_iter().map(define).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defined(replication: u16) -> BTreeMap<Topic, Definition> {
        let all = definitions(&Config::default(), replication).unwrap();
        all.into_iter().map(|definition| (definition.topic, definition)).collect()
    }

    #[test]
    fn every_topic_is_defined_and_nothing_is_left_to_fill_in() {
        let all = defined(3);
        assert_eq!(all.len(), Topic::ALL.len());
        assert!(all.values().flat_map(|d| d.settings.values()).all(|value| !value.contains('{')));
        assert_eq!(all[&Topic::Traces].settings["retention.ms"], "604800000");
        assert_eq!((all[&Topic::Traces].partitions, all[&Topic::Control].partitions), (4, 1));
        assert_eq!(all[&Topic::Control].settings["cleanup.policy"], "compact");
    }

    #[test]
    fn an_acknowledged_record_is_on_two_replicas_where_there_are_three() {
        assert_eq!(defined(3)[&Topic::TracesRaw].settings["min.insync.replicas"], "2");
        assert_eq!(defined(1)[&Topic::TracesRaw].settings["min.insync.replicas"], "1");
        assert!(defined(3).values().all(|d| d.settings["unclean.leader.election.enable"] == "false"));
    }
}
