//! Keys and tokens: how they are made, what is kept of them, and how what must be kept readable is sealed.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::Secret;

/// Before a PAK (Panopticon access key).
pub const PAK_PREFIX: &str = "pano_pak_";
/// Before the HMAC secret of a PAK.
pub const PAK_SECRET_PREFIX: &str = "pano_sec_";
/// Before an API token.
pub const TOKEN_PREFIX: &str = "pano_tok_";
/// Before a webhook secret (Standard Webhooks).
pub const WEBHOOK_SECRET_PREFIX: &str = "whsec_";

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 32 bytes in base 62.
const BASE62_LEN: usize = 43;

/// `prefix` and 32 random bytes in base 62.
pub fn random_key(prefix: &str) -> Secret {
    Secret::new(format!("{prefix}{}", base62(rand::random())))
}

fn base62(mut number: [u8; 32]) -> String {
    let mut digits = [b'0'; BASE62_LEN];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let value = rest * 256 + u32::from(*byte);
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        *digit = BASE62[rest as usize];
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// A new webhook secret: `whsec_` and 32 random bytes in base64.
pub fn random_webhook_secret() -> Secret {
    Secret::new(format!("{WEBHOOK_SECRET_PREFIX}{}", STANDARD.encode(rand::random::<[u8; 32]>())))
}

/// What is kept of a key or token.
pub fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Compares digests in constant time.
pub fn same_digest(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Why something sealed cannot be opened or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// `secrets.key` is not 32 bytes in base64.
    #[error("`secrets.key` must be 32 bytes in base64; make one with `openssl rand -base64 32`")]
    BadKey,
    /// No key is configured.
    #[error(
        "`secrets.key` is not set: it encrypts webhook and HMAC secrets, and must be the same for every process"
    )]
    NoKey,
    /// The key is another one, or the bytes were changed.
    #[error("a stored secret cannot be opened: `secrets.key` is not the key that it was sealed with")]
    CannotOpen,
    /// The key file cannot be read or made.
    #[error("key file {0}: {1}")]
    File(String, #[source] std::io::Error),
}

/// Seals what must be kept readable: XChaCha20-Poly1305 with a random nonce before the ciphertext; `about`
/// binds a secret to its owner, so that it cannot be moved to another.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
}

const NONCE_BYTES: usize = 24;

impl Sealer {
    /// A sealer with `key`, 32 bytes in base64.
    pub fn new(key: &Secret) -> Result<Self, SecretError> {
        if key.is_empty() {
            return Err(SecretError::NoKey);
        }
        let bytes = STANDARD.decode(key.expose().trim()).map_err(|_| SecretError::BadKey)?;
        let cipher = XChaCha20Poly1305::new_from_slice(&bytes).map_err(|_| SecretError::BadKey)?;
        Ok(Self { cipher })
    }

    /// Encrypts `secret`.
    pub fn seal(&self, about: &str, secret: &Secret) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload { msg: secret.expose().as_bytes(), aad: about.as_bytes() };
        // Fails only for messages beyond 256 GiB.
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        [&nonce[..], &sealed].concat()
    }

    /// Decrypts what [`Sealer::seal`] made for the same owner.
    pub fn open(&self, about: &str, sealed: &[u8]) -> Result<Secret, SecretError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SecretError::CannotOpen)?;
        let payload = Payload { msg: sealed, aad: about.as_bytes() };
        let opened =
            self.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| SecretError::CannotOpen)?;
        String::from_utf8(opened).map(Secret::new).map_err(|_| SecretError::CannotOpen)
    }
}

/// The secret in `path`, made with `make` and mode 0600 where there is none.
pub fn file_or_make(path: &Path, make: impl FnOnce() -> Secret) -> Result<Secret, SecretError> {
    let failed = |error| SecretError::File(path.display().to_string(), error);
    match fs::read_to_string(path) {
        Ok(text) => Ok(Secret::new(text.trim())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = make();
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
            writeln!(file, "{}", secret.expose()).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            Ok(secret)
        }
        Err(error) => Err(failed(error)),
    }
}

/// A new key for [`Sealer::new`].
pub fn random_seal_key() -> Secret {
    Secret::new(STANDARD.encode(rand::random::<[u8; 32]>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_prefix_and_43_characters_of_base_62() {
        let key = random_key(PAK_PREFIX);
        let random = key.expose().strip_prefix(PAK_PREFIX).unwrap();
        assert!(random.len() == 43 && random.bytes().all(|c| c.is_ascii_alphanumeric()), "{random}");
        assert_eq!(base62([0xff; 32]), "yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1");
    }

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_for_its_owner() {
        let (key, other) = (random_seal_key(), random_seal_key());
        let sealer = Sealer::new(&key).unwrap();
        let sealed = sealer.seal("app/a", &Secret::new("pano_sec_x"));
        assert_eq!(sealer.open("app/a", &sealed).unwrap().expose(), "pano_sec_x");
        assert!(sealer.open("app/b", &sealed).is_err());
        assert!(Sealer::new(&other).unwrap().open("app/a", &sealed).is_err());
        assert!(sealer.open("app/a", &sealed[..10]).is_err());
    }

    #[test]
    fn a_secret_never_prints() {
        assert_eq!(format!("{:?}", Secret::new("hush")), "\"[redacted]\"");
        assert_eq!(serde_json::to_string(&Secret::new("hush")).unwrap(), "\"[redacted]\"");
    }
}
