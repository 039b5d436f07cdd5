//! The headers of a message: Standard Webhooks, and the form of receivers written for logi.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_TYPE, InvalidHeaderValue, USER_AGENT},
};
use panopticon_core::{
    secrets::{Sealer, SecretError, WEBHOOK_SECRET_PREFIX},
    time::Time,
};
use panopticon_proto::control::WebhookEndpoint;
use sha2::Sha256;
use standardwebhooks::{
    HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP, Webhook, WebhookError,
};

/// The header of receivers written for logi.
pub const LOGI_SIGNATURE: &str = "x-logi-signature";
const AGENT: &str = concat!("panopticon-webhooks/", env!("CARGO_PKG_VERSION"));

/// Why a message cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// All secrets have expired, or there never was one.
    #[error("the endpoint has no valid secret; rotate its secret")]
    NoSecret,
    /// A secret cannot be opened.
    #[error(transparent)]
    Sealed(#[from] SecretError),
    /// A secret is not `whsec_` and base64.
    #[error("the endpoint's secret is not base64; rotate its secret: {0}")]
    Encoding(#[from] base64::DecodeError),
    /// The message cannot be signed.
    #[error(transparent)]
    Standard(#[from] WebhookError),
    /// An id cannot be a header's value.
    #[error("an id of the message cannot be sent as a header: {0}")]
    Header(#[from] InvalidHeaderValue),
}

/// A secret in use.
struct Key {
    kid: String,
    bytes: Vec<u8>,
}

/// What the secrets of an endpoint are sealed for.
pub fn sealed_for(endpoint_id: &str) -> String {
    format!("webhook/{endpoint_id}")
}

/// The endpoint's secrets that are valid at `now`, newest first.
fn keys(endpoint: &WebhookEndpoint, sealer: &Sealer, now: Time) -> Result<Vec<Key>, SignError> {
    let mut valid: Vec<_> = endpoint
        .secrets
        .iter()
        .filter(|secret| secret.expires_at == 0 || secret.expires_at > now.micros())
        .collect();
    valid.sort_by_key(|secret| std::cmp::Reverse(secret.created_at));
    let about = sealed_for(&endpoint.endpoint_id);
    let open = |sealed: &[u8]| -> Result<Vec<u8>, SignError> {
        let secret = sealer.open(&about, sealed)?;
        let text = secret.expose();
        Ok(STANDARD.decode(text.strip_prefix(WEBHOOK_SECRET_PREFIX).unwrap_or(text))?)
    };
    valid.iter().map(|secret| Ok(Key { kid: secret.kid.clone(), bytes: open(&secret.sealed)? })).collect()
}

/// The headers of a message to `endpoint`, sent at `now`.
pub fn headers(
    endpoint: &WebhookEndpoint,
    sealer: &Sealer,
    webhook_id: &str,
    body: &[u8],
    now: Time,
) -> Result<HeaderMap, SignError> {
    let keys = keys(endpoint, sealer, now)?;
    let newest = keys.first().ok_or(SignError::NoSecret)?;
    let timestamp = now.secs();
    let logi = logi_signature(newest, timestamp, body);
    let signatures: Vec<String> = keys
        .into_iter()
        .map(|key| Webhook::from_bytes(key.bytes)?.sign(webhook_id, timestamp, body))
        .collect::<Result<_, _>>()?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    for (name, value) in [
        (HEADER_WEBHOOK_ID, webhook_id),
        (HEADER_WEBHOOK_TIMESTAMP, &timestamp.to_string()),
        (HEADER_WEBHOOK_SIGNATURE, &signatures.join(" ")),
        (LOGI_SIGNATURE, &logi),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
    }
    Ok(headers)
}

/// `t=<unix>,kid=<key id>,v1=<hex HMAC-SHA256 of "<t>.<body>">`.
fn logi_signature(key: &Key, timestamp: i64, body: &[u8]) -> String {
    // HMAC takes keys of every length, so the error cannot occur; no signature would verify if it did.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key.bytes) else { return String::new() };
    mac.update(format!("{timestamp}.").as_bytes());
    mac.update(body);
    format!("t={timestamp},kid={},v1={}", key.kid, hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use panopticon_core::{
        config::Secret,
        secrets::{random_seal_key, random_webhook_secret},
    };
    use panopticon_proto::control::WebhookSecret;

    use super::*;

    fn sealer() -> Sealer {
        Sealer::new(&random_seal_key()).unwrap()
    }

    fn endpoint(sealer: &Sealer, secrets: &[(&str, &Secret, i64, i64)]) -> WebhookEndpoint {
        let secrets = secrets.iter().map(|&(kid, secret, created_at, expires_at)| WebhookSecret {
            kid: kid.to_owned(),
            sealed: sealer.seal("webhook/e1", secret),
            created_at,
            expires_at,
        });
        WebhookEndpoint {
            endpoint_id: "e1".to_owned(),
            secrets: secrets.collect(),
            ..WebhookEndpoint::default()
        }
    }

    #[test]
    fn a_message_verifies_as_standard_webhooks() {
        let (sealer, secret) = (sealer(), random_webhook_secret());
        let endpoint = endpoint(&sealer, &[("k1", &secret, 1, 0)]);
        let now = Time::from_micros(
            panopticon_core::time::Clock::now(&panopticon_core::time::SystemClock).micros(),
        );
        let headers = headers(&endpoint, &sealer, "msg_1", b"{\"a\":1}", now).unwrap();
        let receiver = Webhook::new(secret.expose()).unwrap();
        receiver.verify(b"{\"a\":1}", &headers).unwrap();
        assert!(receiver.verify(b"{\"a\":2}", &headers).is_err());
        assert_eq!(headers["webhook-id"], "msg_1");
        assert_eq!(headers["content-type"], "application/json");
    }

    #[test]
    fn the_logi_signature_has_the_documented_form() {
        // Computed with `openssl dgst -sha256 -hmac key`.
        let key = Key { kid: "k1".to_owned(), bytes: b"key".to_vec() };
        assert_eq!(
            logi_signature(&key, 1_700_000_000, b"{}"),
            "t=1700000000,kid=k1,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
        );
    }

    #[test]
    fn while_a_secret_is_rotated_both_sign_and_the_newest_comes_first() {
        let (sealer, old, new) = (sealer(), random_webhook_secret(), random_webhook_secret());
        let endpoint = endpoint(&sealer, &[("old", &old, 1, 10_000_000), ("new", &new, 2, 0)]);
        let at = |secs| headers(&endpoint, &sealer, "m", b"{}", Time::from_secs(secs)).unwrap();
        let sign =
            |secret: &Secret, secs| Webhook::new(secret.expose()).unwrap().sign("m", secs, b"{}").unwrap();
        assert_eq!(at(9)["webhook-signature"], format!("{} {}", sign(&new, 9), sign(&old, 9)));
        assert!(at(9)[LOGI_SIGNATURE].to_str().unwrap().contains("kid=new"));
        assert_eq!(at(10)["webhook-signature"], sign(&new, 10));
    }

    #[test]
    fn an_endpoint_without_a_valid_secret_sends_nothing() {
        let (sealer, secret) = (sealer(), random_webhook_secret());
        let expired = endpoint(&sealer, &[("k", &secret, 1, 5)]);
        let now = Time::from_secs(1);
        assert!(matches!(headers(&expired, &sealer, "m", b"{}", now), Err(SignError::NoSecret)));
        let mut moved = endpoint(&sealer, &[("k", &secret, 1, 0)]);
        moved.endpoint_id = "e2".to_owned();
        assert!(matches!(headers(&moved, &sealer, "m", b"{}", now), Err(SignError::Sealed(_))));
    }
}
