//! The API's certificate and its key: read, checked, shown to whoever connects, and read again when they change.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use common::causes::in_words;
use common::certificates::{self, Reminder};
use common::clock::{self, Clock, Timestamp};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A client that has sent so little for so long that the two have not agreed on keys is given up.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// The files are looked at so often. No signal is waited for: SIGHUP is also what a terminal that is closed sends.
const LOOK: Duration = Duration::from_secs(60);

/// What the API shows to whoever connects.
pub struct Tls {
    files: Files,
    at_start: Contents,
    shown: Arc<Shown>,
    acceptor: TlsAcceptor,
}

/// Where certificate and key are.
#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// The bytes of both files.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// The certificate that connections get from now on.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _asked: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl Shown {
    fn get(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, next: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// When one cannot be read, is something else, does not belong to the other, or the certificate does not hold now: which, and why.
    pub fn read(certificate: &Path, key: &Path, now: Timestamp) -> anyhow::Result<Self> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let provider = Arc::new(ring::default_provider());
        let at_start = files.contents()?;
        let shown = Arc::new(Shown(RwLock::new(Arc::new(files.identity(&at_start, now, &provider)?))));
        // TLS 1.2 and 1.3: rustls has no others, and of 1.2 only suites with forward secrecy and authenticated encryption.
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("no version of TLS")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Shown>::clone(&shown));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { files, at_start, shown, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Agrees on keys with whoever has connected.
    ///
    /// # Errors
    /// When the other side speaks no TLS, or none that we do, goes away, or takes too long.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        match clock::timeout(HANDSHAKE_MAX, self.acceptor.accept(stream)).await {
            Ok(accepted) => accepted,
            Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)),
        }
    }

    /// Looks at the files again and again: what is renewed is shown from the next connection on. What is no good is said, and not shown.
    pub(crate) async fn follow(&self, clock: &dyn Clock) -> Infallible {
        let mut follower = Follower::new(self.at_start.clone());
        loop {
            let files = self.files.clone();
            let read = tokio::task::spawn_blocking(move || files.contents()).await;
            follower.look(self, read.context("reading broke").flatten(), clock.now());
            clock::sleep(LOOK).await;
        }
    }
}

/// What was good when the files were last looked at, and what was said since.
struct Follower {
    good: Contents,
    fault: String,
    reminder: Reminder,
}

impl Follower {
    fn new(good: Contents) -> Self {
        Self { good, fault: String::new(), reminder: Reminder::default() }
    }

    fn look(&mut self, tls: &Tls, read: anyhow::Result<Contents>, now: Timestamp) {
        let fault = match read.and_then(|contents| self.take(tls, contents, now)) {
            Ok(()) => String::new(),
            Err(why) => in_words(why.as_ref()),
        };
        if fault != self.fault {
            if !fault.is_empty() {
                tracing::error!(why = %fault, "certificate and key have changed and are no good: those before are still shown");
            }
            self.fault = fault;
        }
        let shown = tls.shown.get();
        let end = shown.cert.first().and_then(certificates::end);
        if let Some(end) = self.reminder.due(end, now) {
            tracing::warn!(file = %tls.files.certificate.display(), "the certificate that is shown ends at {end}: renew it");
        }
    }

    /// Shows what is in the files, if that is new. A renewal writes two files: what is found between the two is no good, and another a minute later.
    fn take(&mut self, tls: &Tls, contents: Contents, now: Timestamp) -> anyhow::Result<()> {
        if contents != self.good {
            tls.shown.set(tls.files.identity(&contents, now, tls.acceptor.config().crypto_provider())?);
            tracing::info!(file = %tls.files.certificate.display(), "a renewed certificate is shown from now on");
            self.good = contents;
            self.reminder = Reminder::default();
        }
        Ok(())
    }
}

impl Files {
    fn contents(&self) -> anyhow::Result<Contents> {
        let read = |variable: &str, path: &Path| {
            std::fs::read(path).with_context(|| format!("{variable}: {} cannot be read", path.display()))
        };
        Ok(Contents {
            certificate: read("CRON_TLS_CERT", &self.certificate)?,
            key: read("CRON_TLS_KEY", &self.key)?,
        })
    }

    /// What the files say, if that is good for anything.
    fn identity(
        &self,
        contents: &Contents,
        now: Timestamp,
        provider: &CryptoProvider,
    ) -> anyhow::Result<CertifiedKey> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        let chain = CertificateDer::pem_slice_iter(&contents.certificate)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("CRON_TLS_CERT: {certificate} is no PEM file"))?;
        let Some(first) = chain.first() else {
            bail!("CRON_TLS_CERT: {certificate} has no certificate in it (-----BEGIN CERTIFICATE-----)");
        };
        if let Err(why) = certificates::holds(first, now) {
            bail!("CRON_TLS_CERT: the certificate in {certificate} {why}");
        }
        let private = PrivateKeyDer::from_pem_slice(&contents.key).with_context(|| {
            format!("CRON_TLS_KEY: {key} has no private key in it that can be read (PEM, and not encrypted)")
        })?;
        match CertifiedKey::from_der(chain, private, provider) {
            Ok(identity) => {
                warn_of_readers(&self.key);
                Ok(identity)
            }
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => bail!(
                "CRON_TLS_KEY: {key} is not the key of the certificate in {certificate}, whose first certificate must be the server's own"
            ),
            Err(why) => Err(why).with_context(|| format!("CRON_TLS_KEY: the key in {key} is not usable")),
        }
    }
}

/// Whoever has the key can be taken for this server. A group that may read it is common (`ssl-cert`).
fn warn_of_readers(key: &Path) {
    match std::fs::metadata(key) {
        Ok(meta) if meta.mode() & 0o027 != 0 => {
            let mode = format!("{:o}", meta.mode() & 0o777);
            tracing::warn!(file = %key.display(), mode, "others may read or write the key: chmod 600");
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "the key's permissions are not known"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use common::clock::SystemClock;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use rustls::RootCertStore;
    use tokio_rustls::TlsConnector;

    use super::*;

    /// A certificate of `localhost` that signs itself, and its key, as PEM.
    fn made(first: i32, last: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(first, 1, 1);
        params.not_after = date_time_ymd(last, 1, 1);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn put(dir: &Path, certificate: &str, key: &str) {
        std::fs::write(dir.join("cert.pem"), certificate).unwrap();
        std::fs::write(dir.join("key.pem"), key).unwrap();
        std::fs::set_permissions(dir.join("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn read(dir: &Path) -> anyhow::Result<Tls> {
        Tls::read(&dir.join("cert.pem"), &dir.join("key.pem"), SystemClock.now())
    }

    /// What a server shows, and a client that trusts it.
    pub(crate) fn pair(dir: &Path) -> (Tls, TlsConnector) {
        let (certificate, key) = made(2000, 4000);
        put(dir, &certificate, &key);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (read(dir).unwrap(), TlsConnector::from(Arc::new(client)))
    }

    #[test]
    fn files_that_are_no_good_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = made(2000, 4000);
        let (other, other_key) = made(2000, 4000);
        let rows = [
            (made(2000, 2001).0, key.clone(), "CRON_TLS_CERT", "ends at 2001-01-01T00:00:00"),
            (made(3000, 3001).0, key.clone(), "CRON_TLS_CERT", "begins at 3000-01-01T00:00:00"),
            (certificate.clone(), other_key.clone(), "CRON_TLS_KEY", "is not the key of the certificate"),
            (key.clone(), key.clone(), "CRON_TLS_CERT", "has no certificate in it"),
            (certificate.clone(), certificate.clone(), "CRON_TLS_KEY", "has no private key"),
            (
                certificate.clone(),
                key.replace("PRIVATE", "ENCRYPTED PRIVATE"),
                "CRON_TLS_KEY",
                "not encrypted",
            ),
            (certificate.replace("MII", "???"), key.clone(), "CRON_TLS_CERT", "is no PEM file"),
            (String::new(), key.clone(), "CRON_TLS_CERT", "has no certificate in it"),
        ];
        for (certificate, key, variable, part) in rows {
            put(dir.path(), &certificate, &key);
            let why = format!("{:#}", read(dir.path()).err().unwrap());
            assert!(why.contains(variable) && why.contains(part), "{part:?} is not in {why}");
            assert!(!why.contains("BEGIN PRIVATE"), "{why}");
        }
        put(dir.path(), &(certificate + &other), &key);
        assert!(read(dir.path()).is_ok(), "others may stand behind the server's own");
        put(dir.path(), &other, &other_key);
        std::fs::remove_file(dir.path().join("key.pem")).unwrap();
        let why = format!("{:#}", read(dir.path()).err().unwrap());
        assert!(why.contains("CRON_TLS_KEY") && why.contains("cannot be read"), "{why}");
    }

    #[test]
    fn a_renewed_certificate_is_shown_and_one_that_is_no_good_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (tls, _) = pair(dir.path());
        let now = SystemClock.now();
        let mut follower = Follower::new(tls.at_start.clone());
        let shown = || tls.shown.get().cert[0].as_ref().to_vec();
        let first = shown();
        let mut look = || follower.look(&tls, tls.files.contents(), now);
        look();
        assert_eq!(shown(), first);
        let (certificate, key) = made(2000, 4000);
        // Between its two writes the renewal is seen half done.
        std::fs::write(dir.path().join("cert.pem"), &certificate).unwrap();
        look();
        assert_eq!(shown(), first);
        std::fs::write(dir.path().join("key.pem"), key).unwrap();
        look();
        let second = shown();
        assert_ne!(second, first);
        let (expired, key) = made(2000, 2001);
        put(dir.path(), &expired, &key);
        look();
        assert_eq!(shown(), second);
        std::fs::remove_file(dir.path().join("cert.pem")).unwrap();
        look();
        assert_eq!(shown(), second);
        assert!(follower.fault.contains("cannot be read"), "{}", follower.fault);
    }

    #[test]
    fn who_forgets_to_renew_is_told_each_day() {
        let dir = tempfile::tempdir().unwrap();
        let (tls, _) = pair(dir.path());
        let mut follower = Follower::new(tls.at_start.clone());
        let end = Timestamp::parse("4000-01-01T00:00:00Z").unwrap();
        let mut warned = |days: i64| {
            follower.look(&tls, tls.files.contents(), end.plus_ms(-days * 24 * 3600 * 1000));
            follower.reminder.last()
        };
        assert_eq!(warned(15), None);
        let first = warned(13);
        assert!(first.is_some());
        assert_eq!(warned(13), first);
        assert!(warned(12) > first);
    }
}
