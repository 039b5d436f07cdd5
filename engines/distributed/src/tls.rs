//! TLS for the clients that have none of their own: whose certificates are believed, and which is shown.

use std::{path::Path, sync::Arc};

use panopticon_core::config::TlsFiles;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// What rustls says of a certificate that it does not believe.
const DISTRUST: &str = "invalid peer certificate";

/// TLS as the files say; an error names the setting.
pub(crate) fn client(files: &TlsFiles<'_>) -> Result<ClientConfig, String> {
    let authorities = authorities(files)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(authorities);
    if files.certificate.as_os_str().is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let unusable =
        |error: String| format!("{} and {}: {error}", files.certificate.display(), files.key.display());
    let key = PrivateKeyDer::from_pem_file(files.key).map_err(|error| unusable(error.to_string()))?;
    builder
        .with_client_auth_cert(certificates(files.certificate)?, key)
        .map_err(|error| unusable(error.to_string()))
}

/// TLS to another server than that of the files: the system's authorities are believed too, and no certificate is
/// shown.
pub(crate) fn to_the_web(files: &TlsFiles<'_>) -> Result<ClientConfig, String> {
    let mut store = of_the_system();
    add_those_in(files, &mut store)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(store).with_no_client_auth())
}

fn authorities(files: &TlsFiles<'_>) -> Result<RootCertStore, String> {
    if !files.ca.as_os_str().is_empty() {
        let mut store = RootCertStore::empty();
        add_those_in(files, &mut store)?;
        return Ok(store);
    }
    let store = of_the_system();
    match store.is_empty() {
        true => Err(format!("this system has no certificates of authorities: set {}", files.ca_setting())),
        false => Ok(store),
    }
}

/// Those of the system that cannot be read are missed only where they are needed.
fn of_the_system() -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    store
}

fn add_those_in(files: &TlsFiles<'_>, store: &mut RootCertStore) -> Result<(), String> {
    if files.ca.as_os_str().is_empty() {
        return Ok(());
    }
    for certificate in certificates(files.ca)? {
        store.add(certificate).map_err(|error| format!("{}: {error}", files.ca_setting()))?;
    }
    Ok(())
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let in_file = |error: rustls::pki_types::pem::Error| format!("{}: {error}", file.display());
    CertificateDer::pem_file_iter(file).map_err(in_file)?.collect::<Result<_, _>>().map_err(in_file)
}

/// Which setting to look at when a connection failed with this text, if it is for its certificate.
pub(crate) fn advice(text: &str, files: &TlsFiles<'_>) -> Option<String> {
    text.contains(DISTRUST).then(|| {
        format!("is its authority in {}, and its name the one that is connected to?", files.ca_setting())
    })
}
