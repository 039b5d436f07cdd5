//! Redis, kept as the seen set needs it: what it was told survives, and nothing is evicted.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::ports::Ports;
use super::secured::{Files, PASSWORD, USER};
use super::tools;

/// Makes the data directory. Returns the command of the server.
pub(super) fn prepare(dir: &Path, ports: &Ports) -> Result<Command> {
    let data = dir.join("data/redis");
    fs::create_dir_all(&data)?;
    let mut server = Command::new(tools::require("redis-server", "redis-server")?);
    server
        .args(["--bind", "127.0.0.1", "--port", &ports.redis.to_string()])
        .arg("--dir")
        .arg(data)
        .args(["--appendonly", "yes", "--appendfsync", "everysec"])
        // The append-only file is the one copy; snapshots beside it would only cost a fork now and then.
        .args(["--save", ""])
        .args(["--maxmemory-policy", "noeviction"]);
    let tls = Files::of(dir);
    server
        .args(["--tls-port", &ports.redis_tls.to_string(), "--tls-auth-clients", "no"])
        .arg("--tls-cert-file")
        .arg(tls.certificate)
        .arg("--tls-key-file")
        .arg(tls.key)
        .arg("--tls-ca-cert-file")
        .arg(tls.ca)
        // Beside the default user, who needs no password: with the rights that the documentation names.
        .args(["--user", USER, "on"])
        .arg(format!(">{PASSWORD}"))
        .args(["~test:*", "+@all", "-@dangerous", "+info", "+config|get"]);
    Ok(server)
}
