//! What can go wrong below the ports, and what each port calls it.

use panopticon_core::{log::LogError, seen::SeenError, store::StoreError};
use rusqlite::{ErrorCode, ffi};

/// Why a read or a write job failed. In every case nothing of the job is in the file.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0} write jobs are waiting already (`embedded.queue_jobs`)")]
    QueueFull(usize),
    #[error("the disk is full: {0}")]
    NoRoom(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Fenced(String),
    #[error("{bytes} bytes in one record, {limit} are taken")]
    TooLarge { bytes: usize, limit: usize },
    #[error("{0}")]
    Broken(String),
}

impl Fault {
    /// The engine has been closed, or its writer has gone.
    pub(crate) fn closed() -> Self {
        Self::Unavailable("the engine is closed".to_owned())
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::NoRoom(text),
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::CannotOpen
                | ErrorCode::OperationInterrupted,
            ) => Self::Unavailable(text),
            _ => Self::Broken(text),
        }
    }
}

/// Whether the operating system failed to bring written pages to the disk. It may have dropped them and
/// will not say so again, so nothing that is written afterwards may be called durable.
pub(crate) fn is_lost_sync(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::SqliteFailure(code, _)
            if matches!(code.extended_code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
    )
}

impl From<Fault> for LogError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::QueueFull(_) | Fault::NoRoom(_) => Self::Full(fault.to_string()),
            Fault::Unavailable(why) => Self::Unavailable(why),
            Fault::Fenced(why) => Self::Fenced(why),
            Fault::TooLarge { bytes, limit } => Self::TooLarge { bytes, limit },
            Fault::Broken(why) => Self::Broken(why),
        }
    }
}

impl From<Fault> for SeenError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Broken(why) => Self::Broken(why),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Broken(why) => Self::Broken(why),
            other => Self::Unavailable(other.to_string()),
        }
    }
}
