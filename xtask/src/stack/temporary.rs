//! A stack for one run: gone, with its data, when the run ends.

use std::fs;
use std::io::ErrorKind;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::Stack;
use super::lock::FileLock;
use super::process::{Liveness, ProcessId};

/// A private stack below `target/stack/tmp`. Dropping it kills its servers and removes its folder; what a
/// killed program left behind is removed by the next one that starts a temporary stack.
#[derive(Debug)]
pub struct TemporaryStack {
    stack: Stack,
}

impl TemporaryStack {
    /// Starts a private stack, about four seconds once everything is installed.
    pub fn up() -> Result<Self> {
        Self::up_on(|_| Ok(()))
    }

    /// The same on data that `bring` puts into the stack's folder, below `data/`.
    pub fn up_on(bring: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self::remove_orphans()?;
        let me = i32::try_from(std::process::id()).ok().and_then(ProcessId::of);
        let me = me.context("cannot read this program's own entry in /proc")?;
        // The folder's name says whose it is.
        let dir =
            parent_dir().join(format!("{me} {}", COUNT.fetch_add(1, Ordering::Relaxed)).replace(' ', "-"));
        let up = || {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            bring(&dir)?;
            Stack::up(&dir)
        };
        match up() {
            Ok(stack) => Ok(Self { stack }),
            Err(error) => {
                // Half a stack may be running.
                let _ = remove(&dir);
                Err(error)
            }
        }
    }

    /// Kills the servers and moves their folder, with data and logs, to where it can be looked at.
    pub fn keep(self, folder: &Path) -> Result<()> {
        self.stack.kill()?;
        fs::rename(&self.stack.dir, folder).with_context(|| format!("cannot move it to {}", folder.display()))
    }

    /// Ends and removes the temporary stacks of programs that no longer live.
    pub fn remove_orphans() -> Result<()> {
        let parent = parent_dir();
        // One at a time, or one would recreate (a lock file in) what the other has just removed.
        let _lock = FileLock::acquire(&parent.with_extension("lock"))?;
        let Ok(entries) = fs::read_dir(parent) else { return Ok(()) };
        for dir in entries.flatten().map(|entry| entry.path()) {
            if owner(&dir).is_none_or(|owner| owner.liveness() == Liveness::Dead) {
                remove(&dir)?;
            }
        }
        Ok(())
    }
}

impl Deref for TemporaryStack {
    type Target = Stack;

    fn deref(&self) -> &Stack {
        &self.stack
    }
}

impl Drop for TemporaryStack {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.stack.dir) {
            eprintln!("a temporary stack is left behind: {error:#}");
        }
    }
}

/// The folder of all temporary stacks.
fn parent_dir() -> PathBuf {
    Stack::default_dir().join("tmp")
}

fn owner(dir: &Path) -> Option<ProcessId> {
    let name = dir.file_name()?.to_str()?;
    let (process, _) = name.rsplit_once('-')?;
    process.replace('-', " ").parse().ok()
}

fn remove(dir: &Path) -> Result<()> {
    if let Ok(stack) = Stack::open(dir) {
        stack.kill()?;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
