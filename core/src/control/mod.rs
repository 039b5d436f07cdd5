//! The control plane: a table in the log, held in memory by every process that needs it.
//!
//! [`ControlState`] is the table, [`ControlView`] keeps it up to date, [`ControlWriter`] changes it. The
//! compacted topic `control` is the only store: apps, policies, kills, webhook endpoints, tokens.

mod state;
mod view;
mod writer;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

pub use self::{
    state::{ControlState, Guard, PakEntry},
    view::ControlView,
    writer::{Actor, Change, ChangeError, ControlWriter},
};

/// Percent-encoded so that a `/` only ever separates.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The key of an entry, such as `kill/<client_id>/<user_sub>` with its parts percent-encoded.
pub fn key(kind: &str, parts: &[&str]) -> String {
    let mut key = kind.to_owned();
    for part in parts {
        key.push('/');
        key.extend(utf8_percent_encode(part, ENCODED));
    }
    key
}

/// The kind and the decoded parts of a key.
pub(crate) fn parse_key(key: &[u8]) -> Option<(String, Vec<String>)> {
    let text = std::str::from_utf8(key).ok()?;
    let mut parts = text.split('/').map(|part| {
        percent_encoding::percent_decode_str(part).decode_utf8().map(std::borrow::Cow::into_owned).ok()
    });
    let kind = parts.next()??;
    Some((kind, parts.collect::<Option<Vec<_>>>()?))
}
