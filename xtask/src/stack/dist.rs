//! What is installed once and shared by every stack of this work tree: Kafka's jars and ClickHouse's library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::lock::FileLock;
use super::tools;

/// The version of Kafka in `assets/kafka/pom.xml`.
const KAFKA_VERSION: &str = "4.1.1";
const KAFKA_POM: &str = include_str!("../../assets/kafka/pom.xml");

/// The version of the npm package in `assets/clickhouse`, whose lock file also holds its checksum.
const CLICKHOUSE_VERSION: &str = "26.7.3-stable.1";
const CLICKHOUSE_PACKAGE: &str = "@chdb/lib-linux-x64-gnu";
const CLICKHOUSE_PACKAGE_JSON: &str = include_str!("../../assets/clickhouse/package.json");
const CLICKHOUSE_PACKAGE_LOCK: &str = include_str!("../../assets/clickhouse/package-lock.json");

/// The folder of installed artefacts.
#[derive(Clone, Debug)]
pub struct Dist {
    dir: PathBuf,
}

impl Dist {
    /// The one below this workspace's `target/stack`.
    pub fn of_workspace() -> Self {
        Self { dir: crate::workspace_root().join("target/stack/dist") }
    }

    /// Held while a stack chooses its ports and until its servers listen on them, so that two stacks that
    /// start at the same time do not choose the same.
    pub fn port_lock(&self) -> Result<FileLock> {
        FileLock::acquire(&self.dir.join("ports.lock"))
    }

    /// The folder of Kafka's jars, installed from Maven Central if absent.
    pub fn kafka_jars(&self) -> Result<PathBuf> {
        self.install(&format!("kafka-{KAFKA_VERSION}"), |unfinished| {
            let maven = tools::require("mvn", "maven")?;
            fs::write(unfinished.join("pom.xml"), KAFKA_POM)?;
            tools::run_quietly(
                Command::new(maven)
                    .current_dir(unfinished)
                    .args(["-q", "-B", "dependency:copy-dependencies"])
                    .args(["-DincludeScope=runtime", "-DoutputDirectory=."]),
            )
        })
    }

    /// ClickHouse's `libchdb.so`, installed from npm if absent.
    pub fn clickhouse_library(&self) -> Result<PathBuf> {
        ensure!(
            cfg!(all(target_os = "linux", target_arch = "x86_64")),
            "ClickHouse as a library exists for Linux on x86-64 only; use docker compose here"
        );
        let dir = self.install(&format!("clickhouse-{CLICKHOUSE_VERSION}"), |unfinished| {
            let npm = tools::require("npm", "npm")?;
            fs::write(unfinished.join("package.json"), CLICKHOUSE_PACKAGE_JSON)?;
            fs::write(unfinished.join("package-lock.json"), CLICKHOUSE_PACKAGE_LOCK)?;
            tools::run_quietly(Command::new(npm).current_dir(unfinished).args([
                "ci",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
            ]))?;
            // Only the library is kept.
            let modules = unfinished.join("node_modules");
            fs::rename(modules.join(CLICKHOUSE_PACKAGE).join("libchdb.so"), unfinished.join("libchdb.so"))?;
            fs::remove_dir_all(modules)?;
            Ok(())
        })?;
        Ok(dir.join("libchdb.so"))
    }

    /// Installs into a folder that gets its name only when it is complete.
    fn install(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let complete = self.dir.join(name);
        if complete.exists() {
            return Ok(complete);
        }
        let _lock = FileLock::acquire(&self.dir.join(format!("{name}.lock")))?;
        // Somebody else may have installed it while we waited.
        if complete.exists() {
            return Ok(complete);
        }
        eprintln!("installing {name}");
        let unfinished = self.dir.join(format!("{name}.unfinished"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        fs::create_dir_all(&unfinished)?;
        fill(&unfinished)
            .and_then(|()| Ok(fs::rename(&unfinished, &complete)?))
            .with_context(|| format!("cannot install {name}"))?;
        Ok(complete)
    }
}
