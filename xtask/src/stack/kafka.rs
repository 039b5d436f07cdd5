//! One Kafka node in KRaft mode, broker and controller in one process.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::dist::Dist;
use super::ports::Ports;
use super::secured::{Files, PASSWORD, USER};
use super::tools;

const LOG4J_CONFIG: &str = include_str!("../../assets/kafka/log4j2.yaml");

/// What a single node needs to differ from Kafka's defaults, which are made for three.
const PROPERTIES: &str = "\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,SASL_TLS:SASL_SSL
inter.broker.listener.name=PLAINTEXT

# There is only one node to replicate to.
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Few partitions of the internal topics, and no waiting for further members: groups are ready at once.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0

auto.create.topics.enable=false
log.cleaner.enable=true

# After a kill the controller waits for the broker's former self to be silent for so long before it lets the new
# one in; Kafka's 9 s would make each such test that much slower.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# Data that a test brings along may be older than its retention; nothing here runs long enough to need any.
log.initial.task.delay.ms=86400000
";

/// Writes the configuration and formats the data directory if it is new. Returns the command of the server.
pub(super) fn prepare(dist: &Dist, dir: &Path, ports: &Ports) -> Result<Command> {
    let data = dir.join("data/kafka");
    let config = dir.join("conf/kafka");
    fs::create_dir_all(&data)?;
    fs::create_dir_all(&config)?;
    let server_properties = config.join("server.properties");
    let log4j = config.join("log4j2.yaml");
    fs::write(&server_properties, properties(&data, ports, &Files::of(dir)))
        .context("cannot write Kafka's configuration")?;
    fs::write(&log4j, LOG4J_CONFIG)?;

    let jars = dist.kafka_jars()?;
    let java_path = tools::require("java", "default-jre-headless")?;
    let java = |options: &[&str]| {
        let mut command = Command::new(&java_path);
        command
            .args(options)
            .arg(format!("-Dlog4j2.configurationFile={}", log4j.display()))
            .arg("-cp")
            .arg(jars.join("*"));
        command
    };
    if !data.join("meta.properties").exists() {
        tools::run_quietly(
            java(&["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
                .args(["kafka.tools.StorageTool", "format", "--cluster-id", &cluster_id()])
                .args(SCRAM.into_iter().flat_map(|scram| ["--add-scram".to_owned(), scram_user(scram)]))
                .arg("--config")
                .arg(&server_properties),
        )
        .context("cannot format Kafka's data directory")?;
    }
    let mut server = java(&[
        "-Xms512m",
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
    ]);
    server.arg("kafka.Kafka").arg(&server_properties);
    Ok(server)
}

/// What the secured listeners offer beside PLAIN and OAUTHBEARER.
const SCRAM: [&str; 2] = ["SCRAM-SHA-256", "SCRAM-SHA-512"];

fn scram_user(mechanism: &str) -> String {
    format!("{mechanism}=[name={USER},password={PASSWORD}]")
}

fn properties(data: &Path, ports: &Ports, tls: &Files) -> String {
    let Ports { kafka, kafka_controller, kafka_sasl, kafka_sasl_tls, .. } = ports;
    let open = format!(
        "PLAINTEXT://127.0.0.1:{kafka},SASL://127.0.0.1:{kafka_sasl},SASL_TLS://127.0.0.1:{kafka_sasl_tls}"
    );
    let secured: String =
        ["sasl", "sasl_tls"].into_iter().map(|name| sasl(&format!("listener.name.{name}"))).collect();
    format!(
        "{PROPERTIES}\n\
         controller.quorum.voters=1@127.0.0.1:{kafka_controller}\n\
         listeners={open},CONTROLLER://127.0.0.1:{kafka_controller}\n\
         advertised.listeners={open}\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={}\n\
         {secured}\
         log.dirs={}\n",
        tls.keystore.display(),
        data.display()
    )
}

/// Whom a listener lets in, and how they prove who they are.
fn sasl(listener: &str) -> String {
    const MODULES: &str = "org.apache.kafka.common.security";
    let scram = SCRAM.map(|mechanism| {
        let name = mechanism.to_lowercase();
        format!("{listener}.{name}.sasl.jaas.config={MODULES}.scram.ScramLoginModule required;\n")
    });
    // Without a validator of its own the broker takes tokens that nobody has signed; the claim is for the token of
    // the broker itself, which it does not use. A connection ends with its token, unless it brings another.
    format!(
        "{listener}.sasl.enabled.mechanisms=PLAIN,OAUTHBEARER,{}\n\
         {listener}.plain.sasl.jaas.config={MODULES}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n\
         {listener}.oauthbearer.sasl.jaas.config={MODULES}.oauthbearer.OAuthBearerLoginModule required \
         unsecuredLoginStringClaim_sub=\"{USER}\";\n\
         {listener}.oauthbearer.connections.max.reauth.ms=3600000\n{}",
        SCRAM.join(","),
        scram.concat()
    )
}

/// A cluster id is 16 bytes in base64 without padding: 22 characters. 16 hexadecimal digits in front make it
/// unlike any other cluster's.
fn cluster_id() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{random:016x}AAAAAA")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_has_the_length_of_16_bytes_in_base64() {
        assert_eq!(cluster_id().len(), 22);
        assert_ne!(cluster_id(), cluster_id());
    }
}
