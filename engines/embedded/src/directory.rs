//! The data directory: made for its owner alone, and used by one process at a time.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use crate::OpenError;

const LOCK: &str = "panopticon.lock";
const DATABASE: &str = "panopticon.db";

/// Held as long as this process uses the directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The database file; exists.
    pub(crate) database: PathBuf,
    lock: File,
}

impl Directory {
    /// Makes the directory where it does not exist, and takes it.
    pub(crate) fn take(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Directory { path: path.to_owned(), source };
        make(path).map_err(failed)?;
        let mut lock = open_private(&path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Without a readable pid the message does without it.
                let _ = lock.read_to_string(&mut holder);
                let pid = holder.trim().parse().ok();
                return Err(OpenError::InUse { path: path.to_owned(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        write_pid(&mut lock).map_err(failed)?;
        let database = database(path);
        // SQLite gives its further files the mode of this one.
        drop(open_private(&database).map_err(failed)?);
        Ok(Self { database, lock })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The lock goes with the file in any case; the pid should not outlive it.
        let _ = self.lock.set_len(0);
    }
}

/// The database file of a data directory.
pub(crate) fn database(path: &Path) -> PathBuf {
    path.join(DATABASE)
}

fn make(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{}", std::process::id())?;
    lock.sync_all()
}
