//! Whom outgoing TLS connections trust.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// A trust that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificates to trust cannot be read.
    #[error("ca.crt is not a list of certificates in PEM: {reason}")]
    ReadCertificates {
        /// What the parser said.
        reason: String,
    },
    /// The machine has no list of certificates to trust.
    #[error("this system has no certificates to trust: give a caRef, or install ca-certificates")]
    FindCertificates,
    /// The cryptographic provider cannot do what TLS needs.
    #[error("cannot set up TLS: {source}")]
    Configure {
        /// What rustls said.
        source: rustls::Error,
    },
}

/// Makes *ring* the process's cryptographic provider, for libraries that ask for one. May be called any number of times.
pub fn install_crypto() {
    // An error says that there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A configuration that trusts what the system trusts. Reads the system's list once in a process.
pub fn system() -> Result<Arc<ClientConfig>, TlsError> {
    static SYSTEM: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = SYSTEM.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TlsError::FindCertificates);
    }
    let config = configure(roots)?;
    Ok(Arc::clone(SYSTEM.get_or_init(|| config)))
}

/// A configuration that trusts the certificates of `pem` alone.
pub fn trusting(pem: &str) -> Result<Arc<ClientConfig>, TlsError> {
    let unreadable = |reason: String| TlsError::ReadCertificates { reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| unreadable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unreadable("there is none in it".to_owned()));
    }
    configure(roots)
}

/// A configuration that trusts nobody, for a system without certificates: plain connections still work.
pub fn nobody() -> Result<Arc<ClientConfig>, TlsError> {
    configure(RootCertStore::empty())
}

fn configure(roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Configure { source })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Whether a failed connection failed in TLS itself (a certificate, a version) rather than on the way.
pub fn is_tls(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<rustls::Error>())
}
