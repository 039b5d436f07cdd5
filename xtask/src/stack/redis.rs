//! Redis, kept as the seen set needs it: what it was told survives, and nothing is evicted.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::ports::Ports;
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
    Ok(server)
}
