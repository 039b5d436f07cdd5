//! Small files that are the user's alone: in the folder `logi` of the configuration folder, mode 0600.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy as _;
use serde::{Serialize, de::DeserializeOwned};

/// Why something could not be kept or found there.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The user has no home folder and XDG_CONFIG_HOME is not set.
    #[error("no configuration folder: neither HOME nor XDG_CONFIG_HOME is set")]
    NoFolder,
    /// The file or its folder cannot be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file is not what was written; a person has changed it.
    #[error("{}: {cause}; correct or delete it", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where `name` is: `$XDG_CONFIG_HOME/logi/…`, by default `~/.config/logi/…`.
pub(crate) fn path_of(name: &str) -> Result<PathBuf, KeepError> {
    let base = etcetera::choose_base_strategy().map_err(|_| KeepError::NoFolder)?;
    Ok(base.config_dir().join("logi").join(name))
}

/// What is kept at `path`; the default where there is nothing.
pub(crate) fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, KeepError> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|error| KeepError::Content { path: path.to_owned(), cause: error.into() }),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(cause) => Err(KeepError::File { path: path.to_owned(), cause }),
    }
}

/// Changes what is kept at `path`. Processes that change it at the same time take turns, and a reader
/// sees the old or the new, whole.
pub(crate) fn change<T>(path: &Path, change: impl FnOnce(&mut T)) -> Result<(), KeepError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let failed = |cause| KeepError::File { path: path.to_owned(), cause };
    let folder = path.parent().ok_or(KeepError::NoFolder)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.with_extension("lock"))
        .map_err(failed)?;
    // Freed when it is closed, however this ends.
    lock.lock().map_err(failed)?;
    let mut kept: T = read(path)?;
    change(&mut kept);
    let text = toml::to_string(&kept)
        .map_err(|error| KeepError::Content { path: path.to_owned(), cause: error.into() })?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_many_keep_at_once_is_all_there_and_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/kept.toml");
        std::thread::scope(|threads| {
            for i in 0..8 {
                let path = &path;
                threads.spawn(move || {
                    for j in 0..5 {
                        change(path, |kept: &mut BTreeMap<String, u32>| {
                            kept.insert(format!("{i}-{j}"), j);
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(read::<BTreeMap<String, u32>>(&path).unwrap().len(), 40);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_not_understood_is_named_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.toml");
        fs::write(&path, "not toml").unwrap();
        let error = change(&path, |_: &mut BTreeMap<String, u32>| {}).unwrap_err();
        assert!(error.to_string().contains("kept.toml"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "not toml");
    }
}
