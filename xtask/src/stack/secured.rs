//! What clients need for the secured listeners of a stack: an authority, and a user.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// The user that Kafka's and Redis's secured listeners know.
pub(super) const USER: &str = "panopticon";
/// Their password; of letters and digits alone, so that no configuration has to quote it.
pub(super) const PASSWORD: &str = "opensesame7";

/// The files of a stack's authority and of its servers' certificate, which is for this machine alone.
pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// Key and certificate in one file, as Kafka wants them.
    pub(super) keystore: PathBuf,
}

impl Files {
    pub(super) fn of(dir: &Path) -> Self {
        let file = |name: &str| dir.join("conf/tls").join(name);
        Self {
            ca: file("ca.pem"),
            certificate: file("server.pem"),
            key: file("server.key"),
            keystore: file("keystore.pem"),
        }
    }

    /// Makes them, unless they are there.
    pub(super) fn make(&self) -> Result<()> {
        if self.keystore.exists() {
            return Ok(());
        }
        let mut authority = CertificateParams::default();
        // Two names: OpenSSL takes a certificate whose issuer has its own name for self-signed.
        authority.distinguished_name.push(DnType::CommonName, "Authority of a stack");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, "Server of a stack");
        server.use_authority_key_identifier_extension = true;
        let certificate = server.signed_by(&key, &authority)?;
        let (key, certificate) = (key.serialize_pem(), certificate.pem());
        let write = |file: &Path, text: &str| {
            fs::create_dir_all(file.parent().unwrap_or(file))
                .and_then(|()| fs::write(file, text))
                .with_context(|| format!("cannot write {}", file.display()))
        };
        write(&self.ca, &authority.pem())?;
        write(&self.certificate, &certificate)?;
        write(&self.key, &key)?;
        write(&self.keystore, &format!("{key}{certificate}"))
    }
}
