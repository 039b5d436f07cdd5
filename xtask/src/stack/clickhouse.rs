//! ClickHouse, in a process of our own that lives in its library; see [`crate::clickhouse_host`].

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::dist::Dist;
use super::ports::Ports;
use super::tools;

/// The hidden subcommand of xtask that runs [`crate::clickhouse_host::run`].
pub const HOST_SUBCOMMAND: &str = "clickhouse-host";

/// Makes the data directory. Returns the command of the server.
pub(super) fn prepare(dist: &Dist, dir: &Path, ports: &Ports) -> Result<Command> {
    let data = dir.join("data/clickhouse");
    fs::create_dir_all(&data)?;
    let mut server = Command::new(host_program()?);
    server
        .arg0("xtask")
        .arg(HOST_SUBCOMMAND)
        .arg("--library")
        .arg(dist.clickhouse_library()?)
        .arg("--data-dir")
        .arg(data)
        .args(["--http-port", &ports.clickhouse_http.to_string()])
        .args(["--tcp-port", &ports.clickhouse_tcp.to_string()])
        // A crash of the engine should say where.
        .env("RUST_BACKTRACE", "1");
    Ok(server)
}

/// The xtask binary. That is this program itself, except in a test, which only links xtask's library: test
/// programs lie in `target/PROFILE/deps`, one folder below it.
fn host_program() -> Result<PathBuf> {
    let this = env::current_exe().context("cannot tell which program this is")?;
    if this.file_stem().is_some_and(|name| name == "xtask" || name == "xtask (deleted)") {
        // Not by its path, where a build may have put another one meanwhile, or not yet.
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    let built = this.parent().and_then(Path::parent).map(|profile| profile.join("xtask"));
    if let Some(built) = built.filter(|path| path.exists()) {
        return Ok(built);
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    tools::run_quietly(Command::new(cargo).current_dir(crate::workspace_root()).args([
        "build",
        "--package",
        "xtask",
    ]))?;
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let built = target.unwrap_or_else(|| crate::workspace_root().join("target")).join("debug/xtask");
    built.canonicalize().with_context(|| format!("{} was not built", built.display()))
}
