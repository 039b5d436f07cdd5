//! What the driver's errors mean to the port.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use panopticon_core::log::LogError;

/// A log that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No broker answered.
    #[error("cannot reach Kafka at `{brokers}` (`kafka.brokers`): {reason}")]
    Unreachable {
        /// The configured addresses.
        brokers: String,
        /// What was tried last.
        reason: String,
    },
    /// A setting that the driver refuses.
    #[error("`kafka.properties`: {0}")]
    Setting(String),
    /// A setting on which a promise of the log rests.
    #[error("`kafka.properties.{0}` cannot be set: what the log promises rests on it")]
    Reserved(String),
    /// No token can be asked for there.
    #[error("`kafka.oauth_token_url`: {0}")]
    TokenUrl(String),
    /// A setting that asks for what this build was made without.
    #[error("this build cannot do {0}: build with `--features kafka-tls`")]
    NotBuilt(String),
    /// A prefix that no topic name can have.
    #[error("`kafka.topic_prefix` is `{0}`: a topic name has letters, digits, `.`, `_` and `-`")]
    Prefix(String),
}

impl From<OpenError> for LogError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unreachable { .. } => Self::Unavailable(error.to_string()),
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// The text of a refused setting, without its value: it may be a password.
pub(super) fn setting(error: &KafkaError) -> OpenError {
    OpenError::Setting(match error {
        KafkaError::ClientConfig(_, why, key, _) => format!("{key}: {why}"),
        other => other.to_string(),
    })
}

/// The error of doing `what`.
pub(super) fn failed(what: &str, error: &KafkaError) -> LogError {
    let text = format!("{what}: {error}");
    match error.rdkafka_error_code() {
        Some(code) if is_refusal(code) => LogError::Broken(text),
        Some(Code::QueueFull) => LogError::Full(text),
        _ => LogError::Unavailable(text),
    }
}

/// Whether the broker refuses this client for good.
pub(super) const fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication
            | Code::InvalidTopic
            | Code::UnsupportedVersion
    )
}

/// Whether the topic or partition is not there.
pub(super) const fn is_missing(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicId
    )
}

/// Whether the partition has no leader that answers at the moment.
pub(super) const fn is_moving(code: Code) -> bool {
    matches!(
        code,
        Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
    )
}

/// Whether a newer producer has the transactional id.
pub(super) const fn is_fencing(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::Fatal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_setting_is_told_without_its_value() {
        let error = KafkaError::ClientConfig(
            rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
            "Invalid value".to_owned(),
            "sasl.password".to_owned(),
            "hunter2".to_owned(),
        );
        assert_eq!(setting(&error).to_string(), "`kafka.properties`: sasl.password: Invalid value");
    }

    #[test]
    fn a_refusal_does_not_pass_by_itself() {
        let refused = KafkaError::MessageProduction(Code::TopicAuthorizationFailed);
        assert!(!failed("append", &refused).is_transient());
        assert!(failed("append", &KafkaError::MessageProduction(Code::MessageTimedOut)).is_transient());
    }
}
