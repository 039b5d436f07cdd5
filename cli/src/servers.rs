//! Which server `logi` talks to: what the environment says, else what `serve` has recorded, else the
//! default address.

use std::{
    fs,
    path::{Path, PathBuf},
};

use panopticon_core::{
    config::Secret,
    time::{Clock as _, SystemClock, Time},
};
use serde::{Deserialize, Serialize};

pub use crate::private_file::KeepError;
use crate::private_file::{change, path_of, read};

/// Where a server listens unless it is told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7420";
const DEFAULT_TOKEN_FILE: &str = "panopticon-data/admin.token";
const FILE: &str = "servers.toml";
/// How many servers are remembered; the oldest goes first.
const MAX_SERVERS: usize = 32;

/// A server that was started by this user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedServer {
    /// Its URL.
    pub url: String,
    /// The file that holds its admin token.
    pub token_file: PathBuf,
    /// When it was started.
    pub recorded_at: Time,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Servers {
    #[serde(default)]
    server: Vec<RecordedServer>,
}

/// Records in `logi/servers.toml` that a server answers at `url` to the token in `token_file`, so that
/// `logi` finds it from any directory. The latest record of a URL replaces the earlier.
pub fn record_server(url: &str, token_file: &Path) -> Result<PathBuf, KeepError> {
    let path = path_of(FILE)?;
    record_at(&path, url, token_file, SystemClock.now())?;
    Ok(path)
}

fn record_at(path: &Path, url: &str, token_file: &Path, now: Time) -> Result<(), KeepError> {
    let token_file = std::path::absolute(token_file)
        .map_err(|cause| KeepError::File { path: token_file.to_owned(), cause })?;
    let record = RecordedServer { url: tidy_url(url), token_file, recorded_at: now };
    change::<Servers>(path, |servers| {
        servers.server.retain(|other| !same_url(&other.url, &record.url));
        servers.server.insert(0, record);
        servers.server.truncate(MAX_SERVERS);
    })
}

/// Takes the record of `url` out again: for a server whose data directory does not outlive it.
pub fn forget_server(url: &str) -> Result<(), KeepError> {
    change::<Servers>(&path_of(FILE)?, |servers| servers.server.retain(|other| !same_url(&other.url, url)))
}

/// The recorded servers, the latest first.
pub fn recorded_servers() -> Result<Vec<RecordedServer>, KeepError> {
    recorded_at(&path_of(FILE)?)
}

fn recorded_at(path: &Path) -> Result<Vec<RecordedServer>, KeepError> {
    let mut servers = read::<Servers>(path)?.server;
    servers.sort_by_key(|server| std::cmp::Reverse(server.recorded_at));
    Ok(servers)
}

/// The server to talk to, and how.
#[derive(Debug)]
pub(crate) struct Found {
    /// Without a slash at its end.
    pub(crate) url: String,
    /// None was found where it is absent; `token_from` says why.
    pub(crate) token: Option<Secret>,
    /// Where the token came from or was looked for, for people.
    pub(crate) token_from: String,
}

/// Finds the server. `url` and `token` are what the user named.
pub(crate) fn find(url: Option<&str>, token: Option<Secret>) -> Result<Found, KeepError> {
    // Without a configuration folder nothing was ever recorded.
    let records = match recorded_servers() {
        Err(KeepError::NoFolder) => Vec::new(),
        records => records?,
    };
    // Without a wish: the latest whose token is still there; a demo's goes with its data directory.
    let record = match url {
        Some(url) => records.into_iter().find(|record| same_url(&record.url, url)),
        None => records.into_iter().find(|record| record.token_file.exists()),
    };
    let url = tidy_url(url.or(record.as_ref().map(|record| record.url.as_str())).unwrap_or(DEFAULT_URL));
    if let Some(token) = token {
        return Ok(Found { url, token: Some(token), token_from: "LOGI_TOKEN".into() });
    }
    let file = match record {
        Some(record) => record.token_file,
        // The token of a directory that happens to be here goes to this machine only.
        None if is_loopback(&url) => PathBuf::from(DEFAULT_TOKEN_FILE),
        None => {
            let place = path_of(FILE).map_or_else(|_| FILE.to_owned(), |path| path.display().to_string());
            return Ok(Found { url, token: None, token_from: format!("no record in {place}") });
        }
    };
    let shown = file.display();
    Ok(match fs::read_to_string(&file) {
        Ok(text) => Found { url, token: Some(Secret::new(text.trim())), token_from: shown.to_string() },
        Err(error) => Found { url, token: None, token_from: format!("{shown}: {error}") },
    })
}

/// `url` without slashes at its end.
pub(crate) fn tidy_url(url: &str) -> String {
    url.trim().trim_end_matches('/').to_owned()
}

/// Whether both name the same server: `localhost` is 127.0.0.1, and case does not count in a host.
pub(crate) fn same_url(a: &str, b: &str) -> bool {
    let canonical = |url: &str| match reqwest::Url::parse(&tidy_url(url)) {
        Ok(url) => tidy_url(url.as_str()).replacen("//localhost", "//127.0.0.1", 1),
        Err(_) => tidy_url(url),
    };
    canonical(a) == canonical(b)
}

/// Whether `url` names this machine by a loopback address.
pub(crate) fn is_loopback(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_server_comes_first_and_a_url_has_one_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("servers.toml");
        for (second, url) in
            ["http://127.0.0.1:1", "http://127.0.0.1:2/", "http://localhost:1"].iter().enumerate()
        {
            let now = Time::from_secs(second as i64 + 1);
            record_at(&path, url, Path::new("/data/admin.token"), now).unwrap();
        }
        let urls: Vec<String> = recorded_at(&path).unwrap().into_iter().map(|server| server.url).collect();
        assert_eq!(urls, ["http://localhost:1", "http://127.0.0.1:2"]);
    }

    #[test]
    fn urls_are_the_same_however_they_are_written() {
        assert!(same_url("http://LOCALHOST:7420/", "http://127.0.0.1:7420"));
        assert!(!same_url("http://127.0.0.1:7420", "http://127.0.0.1:7421"));
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, expected) in [
            ("http://127.0.0.1:7420", true),
            ("http://[::1]:7420", true),
            ("http://localhost:1", true),
            ("https://panopticon.example", false),
            ("http://127.0.0.1.example:7420", false),
            ("not a url", false),
        ] {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }
}
