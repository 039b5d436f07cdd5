//! How the servers are connected to: what of it can be seen to be wrong before any of them is asked.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use super::{ClickhouseConfig, Config, KafkaConfig, RedisConfig};

/// How a client proves to Kafka who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaslMechanism {
    /// Name and password as they are.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Name and password, neither of which is sent.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The same with a longer hash.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A token that an OpenID Connect provider gives for a client id and secret.
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

impl SaslMechanism {
    /// Its registered name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

impl fmt::Display for SaslMechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The files that one server's TLS goes by; an empty path names none.
#[derive(Debug, Clone, Copy)]
pub struct TlsFiles<'a> {
    section: &'static str,
    /// Certificates of the authorities that the server's certificate is from.
    pub ca: &'a Path,
    /// This client's own certificate.
    pub certificate: &'a Path,
    /// Its key.
    pub key: &'a Path,
}

impl TlsFiles<'_> {
    /// The setting that names the authorities.
    pub fn ca_setting(&self) -> String {
        format!("`{}.ca_file`", self.section)
    }

    fn each(&self) -> [(&'static str, &Path); 3] {
        [("ca_file", self.ca), ("client_cert_file", self.certificate), ("client_key_file", self.key)]
    }

    /// `tls`: what turns it on where it is off.
    fn check(&self, tls: Result<(), &str>) -> Result<(), String> {
        for (name, file) in self.each() {
            let setting = format!("`{}.{name}`", self.section);
            if file.as_os_str().is_empty() {
                continue;
            }
            if let Err(turn_on) = tls {
                return Err(format!("{setting} is of no use without TLS: {turn_on}"));
            }
            let text = std::fs::read(file)
                .map_err(|error| format!("{setting}: cannot read {}: {error}", file.display()))?;
            if !text.windows(PEM.len()).any(|part| part == PEM) {
                return Err(format!("{setting}: {} is no PEM file", file.display()));
            }
        }
        if self.certificate.as_os_str().is_empty() != self.key.as_os_str().is_empty() {
            let section = self.section;
            return Err(format!("`{section}.client_cert_file` and `{section}.client_key_file` go together"));
        }
        Ok(())
    }
}

const PEM: &[u8] = b"-----BEGIN ";

impl KafkaConfig {
    /// The files of its TLS.
    pub fn tls_files(&self) -> TlsFiles<'_> {
        let (certificate, key) = (&self.client_cert_file, &self.client_key_file);
        TlsFiles { section: "kafka", ca: &self.ca_file, certificate, key }
    }

    fn check(&self) -> Result<(), String> {
        self.tls_files().check(if self.tls { Ok(()) } else { Err("set `kafka.tls`") })?;
        let Some(mechanism) = self.sasl_mechanism else {
            return match self.username.is_empty() && self.password.is_empty() {
                true => Ok(()),
                false => Err("`kafka.username` and `kafka.password` need `kafka.sasl_mechanism`: PLAIN, \
                     SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
                    .to_owned()),
            };
        };
        let by_token = mechanism == SaslMechanism::OauthBearer;
        for (name, missing) in [
            ("username", self.username.is_empty()),
            ("password", self.password.is_empty()),
            ("oauth_token_url", by_token && self.oauth_token_url.is_empty()),
        ] {
            if missing {
                return Err(format!("`kafka.sasl_mechanism` {mechanism} needs `kafka.{name}`"));
            }
        }
        if !by_token && !self.oauth_token_url.is_empty() {
            return Err("`kafka.oauth_token_url` is for `kafka.sasl_mechanism` OAUTHBEARER".to_owned());
        }
        Ok(())
    }
}

impl RedisConfig {
    /// Whether connections are encrypted.
    pub fn tls(&self) -> bool {
        self.url.expose().starts_with("rediss://")
    }

    /// The files of its TLS.
    pub fn tls_files(&self) -> TlsFiles<'_> {
        let (certificate, key) = (&self.client_cert_file, &self.client_key_file);
        TlsFiles { section: "redis", ca: &self.ca_file, certificate, key }
    }

    /// Host and port of each sentinel.
    pub fn sentinels(&self) -> Result<Vec<(String, u16)>, String> {
        let address = |text: &str| {
            let (host, port) = text.trim().rsplit_once(':')?;
            Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
        };
        let each = self.sentinels.split(',').filter(|text| !text.trim().is_empty());
        each.map(|text| {
            address(text).ok_or_else(|| format!("`redis.sentinels`: `{}` is not host:port", text.trim()))
        })
        .collect()
    }

    fn check(&self) -> Result<(), String> {
        self.tls_files().check(if self.tls() {
            Ok(())
        } else {
            Err("`redis.url` must begin with rediss://")
        })?;
        match (self.sentinels()?.is_empty(), self.sentinel_primary.is_empty()) {
            (false, true) => {
                return Err(
                    "`redis.sentinels` needs `redis.sentinel_primary`, the name they have for it".into()
                );
            }
            (true, false) => return Err("`redis.sentinel_primary` needs `redis.sentinels`".to_owned()),
            _ => {}
        }
        match !self.username.is_empty() && self.password.is_empty() {
            true => Err("`redis.username` needs `redis.password`".to_owned()),
            false => Ok(()),
        }
    }
}

impl ClickhouseConfig {
    /// Whether connections are encrypted.
    pub fn tls(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// The files of its TLS.
    pub fn tls_files(&self) -> TlsFiles<'_> {
        let (certificate, key) = (&self.client_cert_file, &self.client_key_file);
        TlsFiles { section: "clickhouse", ca: &self.ca_file, certificate, key }
    }

    fn check(&self) -> Result<(), String> {
        if !self.tls() && !self.url.starts_with("http://") {
            return Err("`clickhouse.url` must begin with http:// or https://".to_owned());
        }
        self.tls_files().check(if self.tls() {
            Ok(())
        } else {
            Err("`clickhouse.url` must begin with https://")
        })?;
        let is_name = |c: u8| c.is_ascii_alphanumeric() || b"_-.{}".contains(&c);
        match self.cluster.bytes().all(is_name) {
            true => Ok(()),
            false => Err("`clickhouse.cluster` must consist of letters, digits and `_-.{}`".to_owned()),
        }
    }
}

/// What is wrong with it, if anything is.
pub(super) fn check(config: &Config) -> Result<(), String> {
    config.kafka.check()?;
    config.redis.check()?;
    config.clickhouse.check()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        check(&config).unwrap_err()
    }

    #[test]
    fn a_connection_that_cannot_work_is_refused_with_the_setting_that_is_wrong() {
        assert_eq!(check(&Config::default()), Ok(()));
        let here = || file!().into();
        for (wrong, told) in [
            (refused(|c| c.kafka.username = "app".into()), "`kafka.sasl_mechanism`"),
            (refused(|c| c.kafka.sasl_mechanism = Some(SaslMechanism::Plain)), "`kafka.username`"),
            (refused(|c| c.kafka.ca_file = here()), "set `kafka.tls`"),
            (refused(|c| (c.kafka.tls, c.kafka.ca_file) = (true, "/nowhere".into())), "`kafka.ca_file`"),
            (refused(|c| c.redis.sentinels = "one".into()), "`redis.sentinels`: `one`"),
            (refused(|c| c.redis.sentinels = "one:26379".into()), "`redis.sentinel_primary`"),
            (refused(|c| c.redis.username = "app".into()), "`redis.password`"),
            (refused(|c| c.redis.client_key_file = here()), "rediss://"),
            (refused(|c| c.clickhouse.url = "tcp://host".into()), "`clickhouse.url`"),
            (refused(|c| c.clickhouse.cluster = "a' b".into()), "`clickhouse.cluster`"),
        ] {
            assert!(wrong.contains(told), "{wrong}");
        }
        let by_token = refused(|c| {
            let kafka = &mut c.kafka;
            kafka.sasl_mechanism = Some(SaslMechanism::OauthBearer);
            (kafka.username, kafka.password) = ("id".to_owned(), Secret::new("hush"));
        });
        assert!(by_token.contains("`kafka.oauth_token_url`") && !by_token.contains("hush"), "{by_token}");
    }

    #[test]
    fn a_certificate_without_its_key_and_a_file_that_is_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pem = folder.path().join("some.pem");
        std::fs::write(&pem, "-----BEGIN CERTIFICATE-----\n").unwrap();
        let alone = refused(|c| (c.kafka.tls, c.kafka.client_cert_file) = (true, pem.clone()));
        assert!(alone.contains("`kafka.client_key_file`"), "{alone}");
        std::fs::write(&pem, "none").unwrap();
        let none = refused(|c| (c.kafka.tls, c.kafka.ca_file) = (true, pem.clone()));
        assert!(none.contains("is no PEM file"), "{none}");
    }
}
