//! A server of MongoDB's protocol of a test's own with TLS, which asks for client certificates, and what is done on it. It is started with mongod's flags.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::domain::record::{Record, Status};
use common::run_log::mongo::MongoRunLog;
use common::run_log::{Error, RecordQuery, RunLog};
use local_dev::native::ports::free_port;
use local_dev::native::process::Process;
use local_dev::native::provision;
use local_dev::native::servers::{Server, Site, Stores, Worker};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fixtures::{SOON, program, put_counting_jobs, wait_for};
use crate::function::Function;
use crate::secure_etcd::{Authority, Signed, put};

/// Enough for an answer of a busy machine; who is kept out waits so long.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The server.
pub struct SecureMongo {
    site: Site,
    address: SocketAddr,
    words: Vec<String>,
    /// For who may come in.
    own_url: String,
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
        let mut words = vec![
            "--bind_ip=127.0.0.1".to_owned(),
            format!("--port={}", address.port()),
            "--tlsMode=requireTLS".to_owned(),
            format!("--tlsCertificateKeyFile={}", own.display()),
            format!("--tlsCAFile={}", authority.ca.display()),
            format!("--dbpath={}", data.display()),
        ];
        words.extend(flags.iter().map(|&flag| flag.to_owned()));
        let process = site.serve("mongo", &provision::mongo_path(), &words).unwrap();
        let own_url = url_of(address, &authority.ca, Some(client));
        let mut server = Self { site: site.clone(), address, words, own_url, process };
        server.ready().await;
        server
    }

    /// Ends it, and starts it again on its port and its data.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        self.process.stop(Signal::TERM, SOON).await;
        self.process = self.site.serve("mongo", &provision::mongo_path(), &self.words).unwrap();
        self.ready().await;
    }

    async fn ready(&mut self) {
        // Who is nobody there is answered, too.
        let answers = async || matches!(records(&self.own_url, "").await, Ok(_) | Err(Error::Denied(_)));
        self.process.ready(answers).await.unwrap();
    }

    /// For `CRON_MONGODB_URI` of who trusts its CA and shows the certificate that it was started for.
    #[must_use]
    pub fn own_url(&self) -> &str {
        &self.own_url
    }

    /// For `CRON_MONGODB_URI` of who trusts this CA and shows this certificate.
    #[must_use]
    pub fn url(&self, ca: &Path, client: Option<&Path>) -> String {
        url_of(self.address, ca, client)
    }
}

/// A worker with this address runs a job and stores its records, and finds nothing wrong; the function `log` with that one reads them. Answers
/// the job's name.
///
/// # Panics
/// When they do not.
pub async fn work_is_done(site: &Site, as_worker: &str, as_api: &str) -> String {
    let etcd = Server::etcd(site, None, &[]).await.unwrap();
    let stores = Stores { etcd: etcd.url(), mongodb: as_worker.to_owned() };
    let mut worker = Worker::start(site, &program("worker").await, &stores, "w1", &[]).await.unwrap();
    let mut kv = etcd_client::Client::connect([etcd.url()], None).await.unwrap();
    let jobs = put_counting_jobs(&mut kv, &site.dir, 1, &json!({})).await;
    let job = jobs[0].name.as_str();
    wait_for("a record", SOON, async || {
        let records = records(as_api, job).await.ok()?;
        records.iter().any(|record| record.status == Some(Status::Succeeded)).then_some(())
    })
    .await;
    let (status, answer) = log_of(site, as_api, job).await;
    assert_eq!((status, &answer["data"][0]["jobName"]), (200, &json!(job)), "{answer}");
    let logged = std::fs::read_to_string(worker.process().log()).unwrap();
    assert!(!logged.contains("ERROR") && !logged.contains("denied"), "{logged}");
    job.to_owned()
}

/// What the function `log` with this address answers about a job: status and body.
///
/// # Panics
/// When it does not start.
pub async fn log_of(site: &Site, url: &str, job: &str) -> (u16, Value) {
    let log = Function::start(site, "log", &[("CRON_MONGODB_URI", url)]).await;
    log.call("GET", &format!("/job/log?name={job}"), None).await
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
