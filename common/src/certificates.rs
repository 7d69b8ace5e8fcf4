//! When certificates end.

use std::time::Duration;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, RootCertStore};

use crate::clock::Timestamp;

/// Behind the year 9999, beyond which no certificate can say that it lasts.
const END_OF_TIME: Duration = Duration::from_secs(400_000_000_000);

/// When each certificate of a PEM text ends, in their order there. What can not be read as one is left out.
#[must_use]
pub fn ends(pem: &[u8]) -> Vec<Timestamp> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).filter_map(|each| end(&each)).collect()
}

/// When a certificate ends. It is asked for its validity at a time when it has none: rustls says no more of a certificate than what is wrong
/// with it, and its times are what it looks at first. No other parser of certificates is needed so.
#[must_use]
pub fn end(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let late = UnixTime::since_unix_epoch(END_OF_TIME);
    match verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], late, &[]) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            let seconds = i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX);
            Some(Timestamp::from_ms(seconds.saturating_mul(1000)))
        }
        _ => None,
    }
}
