//! How the brokers are connected to: over TLS or not, and as whom.

use std::path::Path;

use panopticon_core::config::{KafkaConfig, SaslMechanism};
use rdkafka::ClientConfig;

use super::error::OpenError;

/// The setting that asks for what this build lacks, if any does.
fn lacking(kafka: &KafkaConfig) -> Option<String> {
    if cfg!(feature = "kafka-tls") {
        return None;
    }
    let by_driver = |name: &str| kafka.properties.get(name).map(|value| value.expose().to_ascii_lowercase());
    if kafka.tls {
        return Some("`kafka.tls`".to_owned());
    }
    if let Some(mechanism) = kafka.sasl_mechanism.filter(|mechanism| *mechanism != SaslMechanism::Plain) {
        return Some(format!("`kafka.sasl_mechanism` {mechanism}"));
    }
    if by_driver("security.protocol").is_some_and(|protocol| protocol.contains("ssl")) {
        return Some("`kafka.properties.security.protocol`".to_owned());
    }
    ["sasl.mechanism", "sasl.mechanisms"]
        .into_iter()
        .find(|name| by_driver(name).is_some_and(|mechanism| mechanism != "plain"))
        .map(|name| format!("`kafka.properties.{name}`"))
}

/// Refuses what this build cannot do.
pub(super) fn check(kafka: &KafkaConfig) -> Result<(), OpenError> {
    match lacking(kafka) {
        None => Ok(()),
        Some(setting) => Err(OpenError::NotBuilt(setting)),
    }
}

/// What the driver needs to be told.
pub(super) fn apply(kafka: &KafkaConfig, settings: &mut ClientConfig) {
    let protocol = match (kafka.tls, kafka.sasl_mechanism.is_some()) {
        (false, false) => return,
        (true, false) => "ssl",
        (false, true) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    };
    settings.set("security.protocol", protocol);
    let files = kafka.tls_files();
    let mut file = |name: &str, path: &Path| {
        if !path.as_os_str().is_empty() {
            settings.set(name, path.to_string_lossy());
        }
    };
    file("ssl.ca.location", files.ca);
    file("ssl.certificate.location", files.certificate);
    file("ssl.key.location", files.key);
    let Some(mechanism) = kafka.sasl_mechanism else { return };
    settings.set("sasl.mechanism", mechanism.name());
    // With OAUTHBEARER they are for the token endpoint, and the driver asks its context for tokens.
    if mechanism != SaslMechanism::OauthBearer {
        settings.set("sasl.username", &kafka.username).set("sasl.password", kafka.password.expose());
    }
}

/// Which setting to look at when the driver has said this.
pub(super) fn advice(kafka: &KafkaConfig, said: &str) -> &'static str {
    let says = |words: &str| said.to_ascii_lowercase().contains(words);
    // A broker that reads what it does not understand ends the connection; whether the driver was reading or writing
    // then is chance.
    let was_cut = ["disconnected", "broken pipe", "connection reset"].into_iter().any(says);
    if says("unsupported sasl mechanism") || says("mechanism handshake") {
        "; the brokers do not offer `kafka.sasl_mechanism`"
    } else if kafka.sasl_mechanism == Some(SaslMechanism::OauthBearer) && says("authentication") {
        "; the brokers do not take the token of `kafka.oauth_token_url`: check `kafka.oauth_scope`, and whom they trust"
    } else if says("authentication fail") || says("invalid credentials") || says("scram") {
        "; check `kafka.username` and `kafka.password`"
    } else if says("certificate verify failed") || says("broker certificate") {
        "; is its authority in `kafka.ca_file`, and its name the one that is connected to?"
    } else if says("ssl handshake") || says("plaintext broker listener") || was_cut && kafka.tls {
        "; do the brokers speak TLS on this port (`kafka.tls`)?"
    } else if was_cut || says("broker transport failure") {
        "; do the brokers want TLS (`kafka.tls`) or SASL (`kafka.sasl_mechanism`) on this port?"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use panopticon_core::config::Config;

    use super::*;

    #[test]
    fn however_a_broker_ends_the_connection_the_settings_are_named() {
        let mut kafka = Config::default().kafka;
        for said in [
            "broker:9092/bootstrap: Disconnected while requesting ApiVersion",
            "broker:9092/bootstrap: Send failed: Broken pipe (after 0ms in state UP)",
            "broker:9092/bootstrap: Receive failed: Connection reset by peer",
        ] {
            kafka.tls = false;
            assert!(advice(&kafka, said).contains("`kafka.sasl_mechanism`"), "{said}");
            kafka.tls = true;
            assert!(advice(&kafka, said).contains("`kafka.tls`"), "{said}");
        }
        assert_eq!(advice(&kafka, "broker:9092: Connect failed: Connection refused"), "");
    }
}
