//! The topics: what they carry, how they are cut into partitions, how long they keep it.

use std::fmt;

/// A topic of the log. Names get the configured prefix on Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Envelopes as the gateway took them in, by (client_id, user_sub).
    TracesRaw,
    /// Envelopes without duplicates; partition p is fed by raw partition p.
    Traces,
    /// Counts per tool, status and second, by client_id.
    Rollups,
    /// Slim copies of traces that name a source, by (client_id, source_ip).
    Denials,
    /// What rules found, by (client_id, user_sub).
    Detections,
    /// What RPs are told, by (client_id, user_sub).
    GuardActions,
    /// Records that a stage could not take.
    DeadLetters,
    /// Who changed what.
    Audit,
    /// Apps, policies, kills, webhook endpoints, tokens; compacted.
    Control,
    /// The state of each message on its way to an endpoint; compacted, partitioned like `guard-actions`.
    WebhookDeliveries,
    /// Entities of the detector's rules; compacted, partitioned like the input of the rule.
    DetectorState,
    /// Entities of the enforcer's rules; compacted, partitioned like the input of the rule.
    EnforcerState,
}

/// How many partitions a topic gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The configured number: the road of traces.
    AsConfigured,
    /// One: its records are few and their order is global.
    Single,
}

/// What happens to old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// Deleted when older than the configured retention.
    Delete,
    /// Only the latest record of each key is kept.
    Compact,
}

impl Topic {
    /// Every topic, in the order in which they are created.
    pub const ALL: [Self; 12] = [
        Self::Control,
        Self::TracesRaw,
        Self::Traces,
        Self::Rollups,
        Self::Denials,
        Self::Detections,
        Self::GuardActions,
        Self::DeadLetters,
        Self::Audit,
        Self::WebhookDeliveries,
        Self::DetectorState,
        Self::EnforcerState,
    ];

    /// The name, without a prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TracesRaw => "traces.raw",
            Self::Traces => "traces",
            Self::Rollups => "rollups",
            Self::Denials => "denials",
            Self::Detections => "detections",
            Self::GuardActions => "guard-actions",
            Self::DeadLetters => "dead-letters",
            Self::Audit => "audit",
            Self::Control => "control",
            Self::WebhookDeliveries => "webhook-deliveries",
            Self::DetectorState => "detector-state",
            Self::EnforcerState => "enforcer-state",
        }
    }

    /// The topic of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// How many partitions it gets.
    pub const fn cut(self) -> Cut {
        match self {
            Self::Control | Self::DeadLetters | Self::Audit => Cut::Single,
            _ => Cut::AsConfigured,
        }
    }

    /// What happens to its old records.
    pub const fn cleanup(self) -> Cleanup {
        match self {
            Self::Control | Self::WebhookDeliveries | Self::DetectorState | Self::EnforcerState => {
                Cleanup::Compact
            }
            _ => Cleanup::Delete,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
