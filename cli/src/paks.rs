//! Which PAK belongs to which app. The server keeps digests only, so a PAK that is not kept here (or by
//! the RP) is gone: `logi/paks.toml`, mode 0600.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    private_file::{KeepError, change, path_of, read},
    servers::{same_url, tidy_url},
};

const FILE: &str = "paks.toml";
/// How many PAKs are remembered; the oldest goes first.
const MAX_PAKS: usize = 1_000;

/// A PAK and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPak {
    /// The server.
    pub url: String,
    /// The app.
    pub client_id: String,
    /// `pano_pak_…`.
    pub pak: String,
    /// `pano_sec_…`, for an app in HMAC mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pak_secret: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Paks {
    #[serde(default)]
    pak: Vec<KeptPak>,
}

/// Keeps `kept` in place of an earlier PAK of the same app at the same server.
pub fn keep_pak(kept: KeptPak) -> Result<PathBuf, KeepError> {
    let kept = KeptPak { url: tidy_url(&kept.url), ..kept };
    let path = path_of(FILE)?;
    change::<Paks>(&path, |paks| {
        paks.pak.retain(|other| !(other.client_id == kept.client_id && same_url(&other.url, &kept.url)));
        paks.pak.insert(0, kept);
        paks.pak.truncate(MAX_PAKS);
    })?;
    Ok(path)
}

/// The PAK of an app at a server, if it is kept here.
pub fn kept_pak(url: &str, client_id: &str) -> Result<Option<KeptPak>, KeepError> {
    let paks = read::<Paks>(&path_of(FILE)?)?.pak;
    Ok(paks.into_iter().find(|pak| pak.client_id == client_id && same_url(&pak.url, url)))
}
