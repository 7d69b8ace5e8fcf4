//! A server of MongoDB's protocol of a test's own with TLS, which asks for client certificates. It is started with mongod's flags.

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

use crate::secure_etcd::{Authority, Signed, put};

/// Enough for an answer of a busy machine; who is kept out waits so long.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The server.
pub struct SecureMongo {
    address: SocketAddr,
    _process: Process,
}

impl SecureMongo {
    /// Starts it with a certificate for 127.0.0.1 by `authority`; it takes clients of that CA alone. Waits until it answers one that shows `client`.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(site: &Site, authority: &Authority, client: &Path) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let own = both_in_one(&authority.sign("mongo", "mongo", &["127.0.0.1"]));
        let data = site.dir.join("mongo");
        std::fs::create_dir_all(&data).unwrap();
        let mut command = Command::new(provision::mongo_path());
        command
            .args(["--bind_ip", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--tlsMode", "requireTLS", "--tlsCertificateKeyFile"])
            .args([&own, Path::new("--tlsCAFile"), &authority.ca, Path::new("--dbpath"), &data])
            .env(EXIT_ON_STDIN_EOF.0, EXIT_ON_STDIN_EOF.1);
        let mut process = site.start("mongo", command).unwrap();
        let url = url_of(address, &authority.ca, Some(client));
        process.ready(async || records(&url, "").await.is_ok()).await.unwrap();
        Self { address, _process: process }
    }

    /// For `CRON_MONGODB_URI` of who trusts this CA and shows this certificate.
    #[must_use]
    pub fn url(&self, ca: &Path, client: Option<&Path>) -> String {
        url_of(self.address, ca, client)
    }
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
