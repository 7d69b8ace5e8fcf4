//! TLS to etcd: what is trusted and what is shown, read anew for each connection, and what to do where the two sides do not agree.

use std::error::Error as _;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore};

use super::super::Error;
use crate::config::{EtcdSettings, Pem};

const CA: &str = "CRON_ETCD_CA";
const CERT: &str = "CRON_ETCD_CERT";
const KEY: &str = "CRON_ETCD_KEY";
/// How rustls begins to say that the other side has hung up, and why. Past the handshake HTTP/2 keeps this text alone.
const ALERT: &str = "received fatal alert: ";
/// How HTTP/2 begins to say that what comes is none.
const GARBAGE: &str = "connection error detected: ";

/// Certificates and keys as the settings name them.
pub(super) struct Tls {
    ca: Option<Pem>,
    client: Option<(Pem, Pem)>,
    last: Mutex<Last>,
}

/// What came of the last reading.
struct Last {
    good: TlsOptions,
    fault: String,
    /// What etcd had against us, since it last answered.
    alert: Option<String>,
}

impl Tls {
    /// Reads everything once.
    ///
    /// # Errors
    /// [`Error::Invalid`] when something cannot be read, or is not what its setting wants.
    pub(super) fn read(settings: &EtcdSettings) -> Result<Self, Error> {
        // An error says that somebody installed one already.
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        let client = settings.cert.clone().zip(settings.key.clone());
        let ca = settings.ca.clone();
        let good = read(ca.as_ref(), client.as_ref()).map_err(Error::Invalid)?;
        Ok(Self { ca, client, last: Mutex::new(Last { good, fault: String::new(), alert: None }) })
    }

    /// What the next connection is made with. Files are read anew: a certificate that was renewed in its place is shown without a restart.
    /// What is found half written is no good, and what was good before is used.
    pub(super) fn options(&self) -> TlsOptions {
        let mut last = self.last();
        let fault = match read(self.ca.as_ref(), self.client.as_ref()) {
            Ok(good) => {
                last.good = good;
                String::new()
            }
            Err(why) => why,
        };
        if fault != last.fault {
            if !fault.is_empty() {
                tracing::error!(why = %fault, "the files for TLS to etcd have changed and are no good: what was in them before is used");
            }
            last.fault = fault;
        }
        last.good.clone()
    }

    /// What keeps the two sides of a connection from talking, and what to do about it; `None` where that is not TLS (or the want of it).
    /// Nothing was asked of etcd then: all of this is found before the first request is read.
    pub(super) fn in_words(&self, endpoint: &str, error: &etcd_client::Error) -> Option<String> {
        let mut cause = match error {
            etcd_client::Error::GRpcStatus(status) => status.source(),
            etcd_client::Error::TransportError(error) => Some(error as _),
            _ => None,
        };
        let mut connecting = false;
        while let Some(error) = cause {
            connecting |= error.is::<tonic::ConnectError>();
            let io = error.downcast_ref::<io::Error>();
            let inner = io.and_then(io::Error::get_ref);
            let known =
                error.downcast_ref::<rustls::Error>().or_else(|| inner.and_then(|e| e.downcast_ref()));
            let text = error.to_string();
            let said = match known {
                Some(error) => self.advice(error, connecting),
                None => text.find(ALERT).and_then(|at| self.advice_on_alert(&text[at + ALERT.len()..])),
            };
            if said.is_some() {
                return said;
            }
            let closed = io.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
            if connecting && closed && endpoint.starts_with("https://") {
                return Some(NO_TLS.to_owned());
            }
            if text.starts_with(GARBAGE) && endpoint.starts_with("http://") {
                return Some(format!("what answers there is not etcd without TLS: {NO_PLAIN}"));
            }
            cause = error.source();
        }
        None
    }

    /// What may be wrong where a connection ends before any answer came.
    pub(super) fn of_a_cut(&self, endpoint: &str) -> String {
        if endpoint.starts_with("http://") {
            return format!("it ends the connection: {NO_PLAIN}");
        }
        self.last().alert.clone().unwrap_or_else(|| match self.client {
            None => {
                format!("it ends the connection: if it asks for a client certificate, set {CERT} and {KEY}")
            }
            Some(_) => format!(
                "it ends the connection: its log says whether it does not like the certificate in {CERT}"
            ),
        })
    }

    /// An answer has come over a new connection.
    pub(super) fn agreed(&self) {
        self.last().alert = None;
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        // No step of a change to it can panic.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advice(&self, error: &rustls::Error, connecting: bool) -> Option<String> {
        match error {
            rustls::Error::InvalidCertificate(why) => Some(match why {
                CertificateError::UnknownIssuer if self.ca.is_some() => {
                    format!(
                        "etcd's certificate is signed by none of the CAs in {CA}: put its CA there (a file may hold several)"
                    )
                }
                CertificateError::UnknownIssuer => {
                    format!(
                        "etcd's certificate is signed by no CA that this machine trusts: set {CA} to its CA"
                    )
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!(
                        "etcd's {why}: use such a name in CRON_ETCD_ENDPOINTS, or give etcd a certificate for this one"
                    )
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    format!("etcd's {why}: renew it, or set this machine's clock")
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    format!("etcd's {why}: set this machine's clock, or make another one")
                }
                _ => format!("etcd's certificate is no good: {why}"),
            }),
            rustls::Error::AlertReceived(alert) => self.advice_on_alert(&format!("{alert:?}")),
            rustls::Error::InvalidMessage(_) if connecting => Some(NO_TLS.to_owned()),
            _ => None,
        }
    }

    /// What an alert of etcd means; `None` for those that may come at any time.
    fn advice_on_alert(&self, alert: &str) -> Option<String> {
        let advice = self.meaning(alert)?;
        self.last().alert = Some(advice.clone());
        Some(advice)
    }

    fn meaning(&self, alert: &str) -> Option<String> {
        let shown = self.client.is_some();
        Some(match alert {
            "CertificateRequired" | "BadCertificate" | "HandshakeFailure" if !shown => {
                format!("etcd asks for a client certificate: set {CERT} and {KEY}")
            }
            "UnknownCA" => {
                format!(
                    "etcd does not know the CA of the client certificate in {CERT}: take one of the CA that its --trusted-ca-file names"
                )
            }
            "CertificateExpired" => {
                format!(
                    "the client certificate in {CERT} has expired: put a new one into the files, they are read again by themselves"
                )
            }
            "BadCertificate" | "UnsupportedCertificate" | "CertificateRevoked" | "CertificateUnknown" => {
                format!("etcd refuses the client certificate in {CERT} ({alert}): its log says why")
            }
            "ProtocolVersion" | "HandshakeFailure" | "InsufficientSecurity" | "NoApplicationProtocol" => {
                format!(
                    "etcd and this program have no way to speak TLS in common ({alert}): allow TLS 1.2 or 1.3 there, and see that it is etcd"
                )
            }
            _ => return None,
        })
    }
}

const NO_TLS: &str = "no TLS is spoken there: if that etcd has none, write http:// in CRON_ETCD_ENDPOINTS";
const NO_PLAIN: &str = "if that etcd has TLS, write https:// in CRON_ETCD_ENDPOINTS";

/// What the settings lead to, if it is good for anything.
fn read(ca: Option<&Pem>, client: Option<&(Pem, Pem)>) -> Result<TlsOptions, String> {
    let mut options = match ca {
        None => TlsOptions::new().with_enabled_roots(),
        Some(ca) => {
            let text = bytes(CA, ca)?;
            let certificates = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok);
            let (known, _unknown) = RootCertStore::empty().add_parsable_certificates(certificates);
            if known == 0 {
                return Err(format!(
                    "{}: there is no CA's certificate in it (-----BEGIN CERTIFICATE-----)",
                    place(CA, ca)
                ));
            }
            TlsOptions::new().ca_certificate(Certificate::from_pem(text))
        }
    };
    if let Some((certificate, key)) = client {
        let (chain, private) = (bytes(CERT, certificate)?, bytes(KEY, key)?);
        fit(certificate, &chain, key, &private)?;
        options = options.identity(Identity::from_pem(chain, private));
    }
    Ok(options)
}

/// Whether a certificate and a key are what they should be, and go together.
fn fit(certificate: &Pem, chain: &[u8], key: &Pem, private: &[u8]) -> Result<(), String> {
    let (certificate, key) = (place(CERT, certificate), place(KEY, key));
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).filter_map(Result::ok).collect();
    if chain.is_empty() {
        return Err(format!("{certificate}: there is no certificate in it (-----BEGIN CERTIFICATE-----)"));
    }
    let private = PrivateKeyDer::from_pem_slice(private).map_err(|_no_secret_is_quoted| {
        format!("{key}: there is no private key in it that can be read (PEM, and not encrypted)")
    })?;
    match CertifiedKey::from_der(chain, private, &rustls::crypto::ring::default_provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(format!("{key}: it is not the key of the first certificate of {certificate}"))
        }
        Err(why) => Err(format!("{key}: the key is not usable: {why}")),
    }
}

fn bytes(variable: &str, pem: &Pem) -> Result<Vec<u8>, String> {
    match pem {
        Pem::Text(text) => Ok(text.clone().into_bytes()),
        Pem::File(path) => {
            std::fs::read(path).map_err(|why| format!("{}: it cannot be read: {why}", place(variable, pem)))
        }
    }
}

fn place(variable: &str, pem: &Pem) -> String {
    match pem {
        Pem::Text(_) => variable.to_owned(),
        Pem::File(path) => format!("{variable}={}", path.display()),
    }
}
