//! A server of MongoDB's protocol of a test's own with TLS, which asks for client certificates. It is started with mongod's flags.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::domain::record::Record;
use common::run_log::mongo::MongoRunLog;
use common::run_log::{Error, RecordQuery, RunLog};
use local_dev::native::ports::free_port;
use local_dev::native::process::{EXIT_ON_STDIN_EOF, Process};
use local_dev::native::provision;
use local_dev::native::servers::Site;
use rustix::process::Signal;

use crate::fixtures::SOON;
use crate::secure_etcd::{Authority, Signed, put};

/// Enough for an answer of a busy machine; who is kept out waits so long.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The server.
pub struct SecureMongo {
    site: Site,
    address: SocketAddr,
    words: Vec<OsString>,
    ca: PathBuf,
    process: Process,
}

impl SecureMongo {
    /// Starts it with a certificate for 127.0.0.1 by `authority`, and further `flags`; it takes clients of that CA alone. Waits until it answers one
    /// that shows `client`.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(site: &Site, authority: &Authority, client: &Path, flags: &[&str]) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let own = both_in_one(&authority.sign("mongo", "mongo", &["127.0.0.1"]));
        let data = site.dir.join("mongo");
        std::fs::create_dir_all(&data).unwrap();
        let mut words: Vec<OsString> = ["--bind_ip", "127.0.0.1", "--port"].map(OsString::from).into();
        words.push(address.port().to_string().into());
        words.extend(["--tlsMode", "requireTLS", "--tlsCertificateKeyFile"].map(OsString::from));
        words.extend([
            own.into(),
            "--tlsCAFile".into(),
            authority.ca.clone().into(),
            "--dbpath".into(),
            data.into(),
        ]);
        words.extend(flags.iter().map(OsString::from));
        let process = run(site, &words);
        let mut server = Self { site: site.clone(), address, words, ca: authority.ca.clone(), process };
        server.ready(client).await;
        server
    }

    /// Ends it, and starts it again on its port and its data.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self, client: &Path) {
        self.process.stop(Signal::TERM, SOON).await;
        self.process = run(&self.site, &self.words);
        self.ready(client).await;
    }

    async fn ready(&mut self, client: &Path) {
        let url = self.url(&self.ca, Some(client));
        // Who is nobody there is answered, too.
        let answers = async || matches!(records(&url, "").await, Ok(_) | Err(Error::Denied(_)));
        self.process.ready(answers).await.unwrap();
    }

    /// For `CRON_MONGODB_URI` of who trusts this CA and shows this certificate.
    #[must_use]
    pub fn url(&self, ca: &Path, client: Option<&Path>) -> String {
        url_of(self.address, ca, client)
    }
}

fn run(site: &Site, words: &[OsString]) -> Process {
    let mut command = Command::new(provision::mongo_path());
    command.args(words).env(EXIT_ON_STDIN_EOF.0, EXIT_ON_STDIN_EOF.1);
    site.start("mongo", command).unwrap()
}

fn url_of(address: SocketAddr, ca: &Path, client: Option<&Path>) -> String {
    let shown = client.map(|file| format!("&tlsCertificateKeyFile={}", file.display())).unwrap_or_default();
    format!("mongodb://{address}/?tls=true&tlsCAFile={}{shown}", ca.display())
}

/// A certificate and its key in one file, as MongoDB's drivers and mongod want them.
///
/// # Panics
/// When they cannot be read or written.
#[must_use]
pub fn both_in_one(signed: &Signed) -> PathBuf {
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    let both = signed.certificate.with_extension("both.pem");
    put(&both, &(text(&signed.certificate) + &text(&signed.key)));
    both
}

/// The records of a job, as whoever comes with this address reads them.
///
/// # Errors
/// When they are not to be had.
pub async fn records(url: &str, job: &str) -> Result<Vec<Record>, Error> {
    let query = RecordQuery { job_name: job.to_owned(), limit: 1000, ..RecordQuery::default() };
    MongoRunLog::new(url, CALL_LIMIT)?.list(&query).await
}
