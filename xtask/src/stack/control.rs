//! How programs that are no part of xtask hurt the servers of a stack.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Stack;

impl Stack {
    /// A program that controls stacks for as long as this one runs, as `PROGRAM stack --dir DIR kill redis`:
    /// this program, wherever a build has put another one meanwhile.
    pub fn control_program() -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", std::process::id()))
    }

    /// A program that is given one word for the broker: `kill`, `start`, `stop` (freeze) or `continue`.
    pub fn kafka_control(&self) -> Result<PathBuf> {
        let file = self.dir().join("run/kafka-control");
        let script = format!(
            "#!/bin/sh\ncase $1 in stop) set pause;; continue) set resume;; esac\n\
             exec {} stack --dir '{}' \"$1\" kafka\n",
            Self::control_program().display(),
            self.dir().display()
        );
        fs::write(&file, script)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}
