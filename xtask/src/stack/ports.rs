//! The ports of one stack, chosen once and then kept, so that a server that is killed and started again is
//! found where it was.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Below Linux's ephemeral range (32768 and up), or an outgoing connection could be given the port of a server
/// that is down for a moment.
const PORT_RANGE: Range<u16> = 20_000..32_768;
/// How many ports are tried before giving up.
const MAX_TRIES: usize = 1_000;

/// The loopback ports of one stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Kafka clients.
    pub kafka: u16,
    /// Kafka's controller.
    pub kafka_controller: u16,
    /// Kafka clients with a password. 0, like the other secured ones: a folder of before there were any.
    #[serde(default)]
    pub kafka_sasl: u16,
    /// The same over TLS.
    #[serde(default)]
    pub kafka_sasl_tls: u16,
    /// Redis.
    pub redis: u16,
    /// Redis over TLS.
    #[serde(default)]
    pub redis_tls: u16,
    /// ClickHouse's HTTP interface.
    pub clickhouse_http: u16,
    /// ClickHouse's native protocol.
    pub clickhouse_tcp: u16,
}

impl Ports {
    /// Free ports. They are free now: who calls this keeps others from choosing until they are in use.
    pub fn choose() -> Result<Self> {
        let mut chosen = Vec::with_capacity(8);
        let mut next = || -> Result<u16> {
            let port = free_port(&chosen)?;
            chosen.push(port);
            Ok(port)
        };
        Ok(Self {
            kafka: next()?,
            kafka_controller: next()?,
            kafka_sasl: next()?,
            kafka_sasl_tls: next()?,
            redis: next()?,
            redis_tls: next()?,
            clickhouse_http: next()?,
            clickhouse_tcp: next()?,
        })
    }

    /// All of Kafka's.
    pub fn kafka_all(&self) -> [u16; 4] {
        [self.kafka, self.kafka_controller, self.kafka_sasl, self.kafka_sasl_tls]
    }

    /// Reads what [`write`](Self::write) wrote; `None` if there is nothing usable.
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// Writes the ports, whole or not at all.
    pub fn write(&self, file: &Path) -> Result<()> {
        let unfinished = file.with_extension("new");
        fs::write(&unfinished, serde_json::to_vec(self)?)
            .and_then(|()| fs::rename(&unfinished, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Whether nobody listens on a loopback port.
pub fn is_free(port: u16) -> bool {
    port != 0 && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn free_port(taken: &[u16]) -> Result<u16> {
    for _ in 0..MAX_TRIES {
        // The standard library's hash keys are its one source of randomness.
        let random = RandomState::new().build_hasher().finish();
        let port = PORT_RANGE.start + (random % u64::from(PORT_RANGE.end - PORT_RANGE.start)) as u16;
        if !taken.contains(&port) && is_free(port) {
            return Ok(port);
        }
    }
    bail!("no free port in {PORT_RANGE:?} after {MAX_TRIES} tries");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_stay_below_the_ephemeral_range() {
        let ports = Ports::choose().unwrap();
        let mut all = ports.kafka_all().to_vec();
        all.extend([ports.redis, ports.redis_tls, ports.clickhouse_http, ports.clickhouse_tcp]);
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
        assert!(all.iter().all(|port| PORT_RANGE.contains(port)), "{all:?}");
    }

    #[test]
    fn a_port_in_use_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port()));
    }
}
