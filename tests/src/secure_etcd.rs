//! An etcd of a test's own with TLS, which asks for client certificates; and a CA that signs whatever a test wants.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get};
use local_dev::native::provision;
use local_dev::native::servers::Site;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

/// A port that was free a moment ago can be taken by the time etcd binds it: others are tried so often.
const START_ATTEMPTS: u32 = 3;

/// A CA, and the directory where it leaves what it signs.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
    /// Its own certificate.
    pub ca: PathBuf,
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Authority {
    /// A new CA; its certificate is `{name}-ca.pem` in `dir`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca = dir.join(format!("{name}-ca.pem"));
        std::fs::write(&ca, issuer.pem()).unwrap();
        Self { issuer, dir: dir.to_owned(), ca }
    }

    /// Signs a certificate with this common name for these host names and addresses, into `{file}.pem` and `{file}.key`, in place of what is there.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn sign(&self, file: &str, common_name: &str, hosts: &[&str]) -> Signed {
        self.sign_until(file, common_name, hosts, 2100)
    }

    /// [`Self::sign`], for a certificate that ends with the beginning of `year`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn sign_until(&self, file: &str, common_name: &str, hosts: &[&str], year: i32) -> Signed {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(year, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |extension: &str, text: &str| {
            let path = self.dir.join(format!("{file}.{extension}"));
            put(&path, text); // etcd reads its own certificate with every handshake
            path
        };
        Signed { certificate: write("pem", &certificate.pem()), key: write("key", &key.serialize_pem()) }
    }

    /// A key that signs etcd's tokens, and the flag that makes etcd use it, for tokens that live `ttl_seconds`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn jwt_flag(&self, ttl_seconds: u32) -> String {
        let key = KeyPair::generate().unwrap();
        let private = self.dir.join("tokens.key");
        std::fs::write(&private, key.serialize_pem()).unwrap();
        format!("--auth-token=jwt,priv-key={},sign-method=ES256,ttl={ttl_seconds}s", private.display())
    }
}

/// Puts a file in the place of what is there at once: it is never half there.
///
/// # Panics
/// When it cannot be written.
pub fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The server.
pub struct SecureEtcd {
    site: Site,
    address: SocketAddr,
    health: SocketAddr,
    words: Vec<String>,
    /// What a client needs: the CA, and a certificate for it.
    pub ca: PathBuf,
    /// The certificate that [`Self::client`] shows.
    pub client: Signed,
    process: Process,
}

impl SecureEtcd {
    /// Starts one member with a certificate for 127.0.0.1 by `authority` and further `flags`, which takes clients of that CA alone, and waits
    /// until it is healthy. Its own certificate is the file `etcd`.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(site: &Site, authority: &Authority, flags: &[&str]) -> Self {
        let mut attempt = 1;
        loop {
            let mut etcd = Self::spawn(site, authority, flags);
            match etcd.ready().await {
                Ok(()) => return etcd,
                Err(_port_taken) if attempt < START_ATTEMPTS => attempt += 1,
                Err(why) => panic!("{why:#}"),
            }
        }
    }

    fn spawn(site: &Site, authority: &Authority, flags: &[&str]) -> Self {
        let loopback = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let (address, peer, health) = (loopback(), loopback(), loopback());
        let own = authority.sign("etcd", "etcd", &["127.0.0.1"]);
        let data = site.dir.join("etcd");
        if data.exists() {
            std::fs::remove_dir_all(&data).unwrap(); // of an attempt with other ports
        }
        let mut words = vec![
            "--name=default".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls=https://{address}"),
            format!("--advertise-client-urls=https://{address}"),
            format!("--cert-file={}", own.certificate.display()),
            format!("--key-file={}", own.key.display()),
            format!("--trusted-ca-file={}", authority.ca.display()),
            "--client-cert-auth".to_owned(),
            format!("--listen-metrics-urls=http://{health}"),
            format!("--listen-peer-urls=http://{peer}"),
            format!("--initial-advertise-peer-urls=http://{peer}"),
            format!("--initial-cluster=default=http://{peer}"),
            "--log-level=warn".to_owned(),
        ];
        words.extend(flags.iter().map(|&flag| flag.to_owned()));
        let client = authority.sign("client", "nobody", &[]);
        let process = site.serve("etcd", &provision::etcd_path(), &words).unwrap();
        Self { site: site.clone(), address, health, words, ca: authority.ca.clone(), client, process }
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let health = self.health;
        let healthy =
            async || get(health, "/health").await.is_some_and(|(_, body)| body.contains("\"true\""));
        self.process.ready(healthy).await
    }

    /// Where it takes clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `CRON_ETCD_ENDPOINTS`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Kills it (SIGKILL) and starts it again on the same ports and data.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = self.site.serve("etcd", &provision::etcd_path(), &self.words).unwrap();
        self.ready().await.unwrap();
    }

    /// A client of these user and password, with the certificate of nobody.
    ///
    /// # Errors
    /// When etcd does not let it in.
    ///
    /// # Panics
    /// When its files cannot be read.
    pub async fn client(&self, user: Option<(&str, &str)>) -> Result<Client, etcd_client::Error> {
        self.client_with(&self.ca, &self.client, user).await
    }

    /// [`Self::client`], with another CA's certificate and another certificate to show.
    ///
    /// # Errors
    /// When etcd does not let it in, or it etcd.
    ///
    /// # Panics
    /// When its files cannot be read.
    pub async fn client_with(
        &self,
        ca: &Path,
        shown: &Signed,
        user: Option<(&str, &str)>,
    ) -> Result<Client, etcd_client::Error> {
        let read = |path: &Path| std::fs::read(path).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read(ca)))
            .identity(Identity::from_pem(read(&shown.certificate), read(&shown.key)));
        let mut options = ConnectOptions::new().with_tls(tls);
        if let Some((name, password)) = user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        Client::connect([self.url()], Some(options)).await
    }
}
