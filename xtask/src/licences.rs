//! Every dependency's licence must be one that the project has agreed to. Works offline, on what cargo has.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use spdx::{Expression, LicenseItem, LicenseReq, ParseMode};

/// Licences that permit use in an Apache-2.0 program and ask for no more than their text to be kept.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// `None` for the crates of this workspace.
    source: Option<String>,
}

/// Checks all dependencies of the workspace, of every target and kind. Returns how many there are.
pub fn check() -> Result<usize> {
    let output = Command::new("cargo")
        .current_dir(crate::workspace_root())
        .args(["metadata", "--format-version", "1", "--quiet"])
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cannot read cargo metadata")?;

    let dependencies: Vec<&Package> = metadata.packages.iter().filter(|p| p.source.is_some()).collect();
    let refused: Vec<String> = dependencies
        .iter()
        .filter_map(|package| {
            let reason = is_allowed(package.license.as_deref()).err()?;
            Some(format!("  {} {}: {reason}", package.name, package.version))
        })
        .collect();
    if !refused.is_empty() {
        bail!("dependencies under licences that are not agreed to:\n{}", refused.join("\n"));
    }
    Ok(dependencies.len())
}

fn is_allowed(license: Option<&str>) -> Result<()> {
    let license = license.context("it names no licence")?;
    // Lax: older crates write MIT/Apache-2.0 for "MIT OR Apache-2.0".
    let expression = Expression::parse_mode(license, ParseMode::LAX)
        .ok()
        .with_context(|| format!("{license:?} is not an SPDX expression"))?;
    ensure!(expression.evaluate(is_agreed), "{license}");
    Ok(())
}

/// An exception (`WITH …`) only ever permits more, so it needs no agreement.
fn is_agreed(requirement: &LicenseReq) -> bool {
    match &requirement.license {
        LicenseItem::Spdx { id, .. } => ALLOWED.contains(&id.name),
        LicenseItem::Other { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agreed_alternative_is_enough_but_every_part_of_a_sum_counts() {
        for fine in
            ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "Apache-2.0 WITH LLVM-exception", "MIT AND ISC"]
        {
            assert!(is_allowed(Some(fine)).is_ok(), "{fine}");
        }
        for wrong in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "LicenseRef-ours", "what?"] {
            assert!(is_allowed(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(is_allowed(None).is_err());
    }
}
