//! Programs of the machine that the stack needs: found on the PATH, or installed from Debian's packages.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Debian asks this script whether a package may start its service; see policy-rc.d(8).
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";
/// How much of a failed command's output its error shows.
const SHOWN_OUTPUT_LINES: usize = 30;

/// Finds a program on the PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// Finds a program, and installs Debian's package of it if it is absent and we may.
pub fn require(program: &str, debian_package: &str) -> Result<PathBuf> {
    if let Some(path) = find(program) {
        return Ok(path);
    }
    ensure!(
        rustix::process::geteuid().is_root() && find("apt-get").is_some(),
        "`{program}` is not on the PATH; install it (Debian: apt-get install {debian_package})"
    );
    install_debian_package(debian_package)?;
    find(program)
        .with_context(|| format!("package {debian_package} is installed, but `{program}` is not there"))
}

/// Runs a command to its end and keeps quiet, unless it fails: then the error holds the end of its output.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!("{name} failed ({}):\n{}", output.status, last_lines(&text, SHOWN_OUTPUT_LINES));
    }
    Ok(())
}

/// The last lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn install_debian_package(package: &str) -> Result<()> {
    eprintln!("installing Debian's package {package}");
    let _policy = NoServices::enforce()?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run_quietly(apt_get().args(["update", "-q"]))?;
    run_quietly(apt_get().args(["install", "-y", "-q", "--no-install-recommends", package]))
}

/// While this lives, packages that are installed do not start their services: the stack runs its own.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn enforce() -> Result<Self> {
        let script = Path::new(SERVICE_POLICY);
        // A machine that has a policy (a container image, mostly) has decided already.
        let ours = !script.exists();
        if ours {
            fs::write(script, "#!/bin/sh\nexit 101\n")
                .and_then(|()| fs::set_permissions(script, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("cannot write {SERVICE_POLICY}"))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(SERVICE_POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_not_found_and_a_present_one_is() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    #[test]
    fn a_failed_command_shows_the_end_of_its_output() {
        let error = run_quietly(Command::new("sh").args(["-c", "seq 100; echo oh >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.ends_with("100\noh") && !text.contains("\n70\n"),
            "{text}"
        );
    }
}
