//! `cargo xtask eval`: scores the detection rules on the public data in `eval/data`.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{interrupt::Interrupt, workspace_root};

/// Prints the table of `parts`, or of all; the figures go to `json` too.
pub fn run(parts: &[String], json: Option<&Path>) -> Result<()> {
    let interrupt = Interrupt::catch()?;
    let mut eval = Command::new("cargo");
    eval.current_dir(workspace_root()).args(["run", "--release", "-p", "panopticon-eval", "--"]).args(parts);
    if let Some(json) = json {
        eval.arg("--json").arg(std::path::absolute(json)?);
    }
    interrupt.run(&mut eval)
}
