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

/// When a certificate ends.
#[must_use]
pub fn end(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    match verdict(&parsed, UnixTime::since_unix_epoch(END_OF_TIME)) {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            Some(timestamp(not_after))
        }
        _ => None,
    }
}

/// Whether a certificate holds at a time.
///
/// # Errors
/// Why it does not, as the end of a sentence that begins with it.
pub fn holds(certificate: &CertificateDer<'_>, at: Timestamp) -> Result<(), String> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(|why| format!("is not usable: {why}"))?;
    let since_epoch = Duration::from_millis(u64::try_from(at.ms()).unwrap_or_default());
    match verdict(&parsed, UnixTime::since_unix_epoch(since_epoch)) {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            Err(format!("ends at {}", timestamp(not_after)))
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            Err(format!("begins at {} only", timestamp(not_before)))
        }
        rustls::Error::InvalidCertificate(CertificateError::Expired) => {
            Err("ends before it begins".to_owned())
        }
        _ => Ok(()),
    }
}

/// What is wrong with a certificate at a time. rustls says no more of one than that. Nobody is trusted here, so that there is always something, and
/// the times are what it looks at first: no other parser of certificates is needed.
fn verdict(certificate: &ParsedCertificate<'_>, time: UnixTime) -> rustls::Error {
    let nobody = RootCertStore::empty();
    match verify_server_cert_signed_by_trust_anchor(certificate, &nobody, &[], time, &[]) {
        Err(wrong) => wrong,
        Ok(()) => CertificateError::UnknownIssuer.into(),
    }
}

fn timestamp(time: UnixTime) -> Timestamp {
    Timestamp::from_ms(i64::try_from(time.as_secs()).unwrap_or(i64::MAX).saturating_mul(1000))
}

/// Of what ends soon somebody is reminded once a day: what renews itself has done it before the first time.
#[derive(Debug, Default)]
pub struct Reminder {
    last: Option<Timestamp>,
}

impl Reminder {
    /// It begins so many ms before the end.
    const FROM_MS: i64 = 14 * Self::DAY_MS;
    const DAY_MS: i64 = 24 * 3600 * 1000;

    /// The end, if it is time to say it. What ends later than soon is forgotten: it has been renewed.
    pub fn due(&mut self, end: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let Some(end) = end.filter(|end| end.ms_since(now) < Self::FROM_MS) else {
            self.last = None;
            return None;
        };
        let is_due = self.last.is_none_or(|last| now.ms_since(last) >= Self::DAY_MS);
        is_due.then(|| {
            self.last = Some(now);
            end
        })
    }

    /// When it was last time to; `None` = not since what ends was renewed.
    #[must_use]
    pub fn last(&self) -> Option<Timestamp> {
        self.last
    }
}
