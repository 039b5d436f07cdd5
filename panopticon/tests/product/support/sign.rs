//! HMAC-SHA256, as an RP makes and checks signatures.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Lower-case hex of HMAC-SHA256(`key`, "`timestamp`." + `bytes`).
pub fn hmac_hex(key: &[u8], timestamp: &str, bytes: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(bytes);
    hex::encode(mac.finalize().into_bytes())
}

/// Unix seconds.
pub fn now_secs() -> i64 {
    jiff::Timestamp::now().as_second()
}
