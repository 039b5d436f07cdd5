//! HMAC mode: the signature over a request's bytes.

use hmac::{Hmac, KeyInit as _, Mac as _};
use panopticon_core::{config::Secret, time::Time};
use sha2::Sha256;

use crate::error::{GatewayError, Kind};

fn wrong(description: impl Into<String>) -> GatewayError {
    GatewayError::new(Kind::InvalidSignature, description)
}

/// Checks that `signature` is the lower-case hex of HMAC-SHA256(`secret`, "`timestamp`." + `body`), in
/// constant time, and that `timestamp` (Unix seconds) is within `tolerance_secs` of `now`.
pub fn verify(
    secret: &Secret,
    timestamp: &str,
    signature: &str,
    body: &[u8],
    now: Time,
    tolerance_secs: u64,
) -> Result<(), GatewayError> {
    let sent_at: i64 = timestamp.parse().map_err(|_| wrong("the timestamp must be in Unix seconds"))?;
    if now.secs().abs_diff(sent_at) > tolerance_secs {
        return Err(wrong(format!(
            "the timestamp is more than {tolerance_secs} s off; the server's clock says {}",
            now.secs()
        )));
    }
    if signature.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err(wrong("the signature must be lower-case hex"));
    }
    let claimed = hex::decode(signature).map_err(|_| wrong("the signature must be lower-case hex"))?;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .map_err(|_| wrong("the app has no usable secret; rotate its PAK"))?;
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac.verify_slice(&claimed)
        .map_err(|_| wrong("the signature does not match HMAC-SHA256(pak_secret, \"<timestamp>.<body>\")"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(secret: &str, text: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(text);
        hex::encode(mac.finalize().into_bytes())
    }

    #[test]
    fn a_signature_holds_for_its_secret_time_and_bytes_only() {
        let (secret, now) = (Secret::new("pano_sec_x"), Time::from_secs(1_000_000));
        let good = sign("pano_sec_x", b"1000000.{}");
        assert!(verify(&secret, "1000000", &good, b"{}", now, 300).is_ok());
        assert!(verify(&secret, "1000000", &good, b"{ }", now, 300).is_err());
        assert!(verify(&secret, "1000001", &good, b"{}", now, 300).is_err());
        assert!(verify(&Secret::new("pano_sec_y"), "1000000", &good, b"{}", now, 300).is_err());
        assert!(verify(&secret, "1000000", &good.to_uppercase(), b"{}", now, 300).is_err());
        assert!(verify(&secret, "1000000", "", b"{}", now, 300).is_err());
        assert!(verify(&secret, "1000000", &good, b"{}", Time::from_secs(1_000_301), 300).is_err());
        assert!(verify(&secret, "1000000", &good, b"{}", Time::from_secs(1_000_300), 300).is_ok());
    }
}
