//! What end-to-end tests are made of: a fleet of real parts on loopback, a client, and waiting for conditions.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::clock::{Clock, Stopwatch, SystemClock, sleep};
use etcd_client::{ConnectOptions, PutOptions};
use futures::TryStreamExt;
use local_dev::native::guard::Guard;
use local_dev::native::servers::{self, Server, Site, Stores, Watch, Worker};
use local_dev::native::{programs, provision, target};
use mongodb::bson::{Bson, Document, doc};
use tokio::sync::{Mutex, MutexGuard};

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(50);
/// What should happen soon is waited for so long, however busy the machine is.
pub const SOON: Duration = Duration::from_secs(45);

/// Waits until `probe` answers something, and returns that.
///
/// # Panics
/// When it did not within `limit`.
pub async fn wait_for<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = Stopwatch::start();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(waited.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        sleep(POLL).await;
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    SystemClock.now().ms()
}

/// A directory of a test's own below `target`; removed when the test has passed.
pub struct TestDir(PathBuf);

impl TestDir {
    /// Creates it.
    ///
    /// # Panics
    /// When it cannot be created.
    #[must_use]
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = target().join("native").join(format!("{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        // What a failed test leaves behind tells why it failed.
        if std::thread::panicking() {
            eprintln!("logs and data are kept in {}", self.0.display());
        } else {
            let _left = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// This test program's guard; it lives as long as the program.
#[must_use]
pub fn guard() -> Option<Guard> {
    static GUARD: OnceLock<Option<Guard>> = OnceLock::new();
    GUARD.get_or_init(|| Guard::start(&programs().ok()?.join("tests")).ok()).clone()
}

/// An HTTP client.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn http() -> reqwest::Client {
    // A second test of the same program finds the provider installed.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap()
}

/// Says why a test does not run; `cargo run -p tests` counts these lines.
pub fn skip(test: &str, missing: &str) {
    eprintln!("\nSKIPPED: {test}: {missing}: `cargo run -p tests` gets it");
}

/// Says what a test does not try because nothing that these tests may get has it. That is no fault of the machine, so it is named and not counted
/// as skipped.
pub fn not_tried(test: &str, what: &str) {
    eprintln!("\nNOT TRIED: {test}: {what}");
}

/// A program of the workspace, built from the sources as they are now: the runner has done it, who runs one test alone has not.
///
/// # Panics
/// When it does not build.
pub async fn program(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeSet<String>> = Mutex::const_new(BTreeSet::new());
    let mut built = BUILT.lock().await;
    if !built.contains(name) {
        servers::build(&["--workspace", "--bin", name]).await.unwrap();
        built.insert(name.to_owned());
    }
    programs().unwrap().join(name)
}

/// Where the servers of a test live.
#[must_use]
pub fn site(dir: &TestDir) -> Site {
    Site { dir: dir.path().to_path_buf(), guard: guard() }
}

/// Whether there is an etcd to start; else the test says why it does not run.
#[must_use]
pub fn has_etcd(test: &str) -> bool {
    let found = provision::etcd_path().exists();
    if !found {
        skip(test, "no etcd in target/servers");
    }
    found
}

/// Whether there is a server of MongoDB's protocol to start; else the test says why it does not run.
#[must_use]
pub fn has_mongo(test: &str) -> bool {
    let found = provision::mongo_path().exists();
    if !found {
        skip(test, "no MongoDB-protocol server in target/servers");
    }
    found
}

/// A directory with etcd, etcdctl and etcdutl of one version, below `dir` if it must be made; `None` where an etcd is installed without the others.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn etcd_programs(dir: &Path) -> Option<PathBuf> {
    let etcd = provision::etcd_path();
    if etcd.is_symlink() {
        let beside = etcd.canonicalize().unwrap().parent().unwrap().to_owned();
        return ["etcdctl", "etcdutl"].iter().all(|program| beside.join(program).is_file()).then_some(beside);
    }
    let dir = dir.join("bin");
    std::fs::create_dir_all(&dir).unwrap();
    for name in ["etcd", "etcdctl", "etcdutl"] {
        symlink(&etcd, dir.join(name)).unwrap(); // ours is all three
    }
    Some(dir)
}

/// A store without a fleet, of a test's own.
pub struct Store {
    /// Its server.
    pub server: Server,
    _dir: TestDir,
}

impl Store {
    /// Starts etcd with further flags; `None`, loudly, when there is none to start.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn etcd(test: &str, flags: &[&str]) -> Option<Self> {
        if !has_etcd(test) {
            return None;
        }
        let dir = TestDir::new(test);
        Some(Self { server: Server::etcd(&site(&dir), None, flags).await.unwrap(), _dir: dir })
    }

    /// Starts a server of MongoDB's protocol; `None`, loudly, when there is none to start.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn mongo(test: &str) -> Option<Self> {
        if !has_mongo(test) {
            return None;
        }
        let dir = TestDir::new(test);
        Some(Self { server: Server::mongo(&site(&dir), None).await.unwrap(), _dir: dir })
    }
}

/// etcd, a MongoDB-protocol server and workers, all of a test's own.
pub struct Fleet {
    /// The workers; add with [`Self::worker`].
    pub workers: Vec<Worker>,
    /// The functions; add with [`Self::watch`].
    pub watch: Option<Watch>,
    /// MongoDB.
    pub mongo: Server,
    /// etcd.
    pub etcd: Server,
    /// Where the test may write.
    pub dir: TestDir,
    /// Who keeps and guards its servers.
    pub site: Site,
    /// User and password of [`Self::kv`], once etcd asks for them.
    pub credentials: Option<(&'static str, &'static str)>,
    _alone: MutexGuard<'static, ()>,
}

impl Fleet {
    /// Starts the stores; `None`, loudly, when there are none to start.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &[]).await
    }

    /// [`Self::start`], with further flags of etcd.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn start_with(test: &str, etcd_flags: &[&str]) -> Option<Self> {
        // These tests count the seconds in which jobs fire: two fleets at once would make each other late.
        static ALONE: Mutex<()> = Mutex::const_new(());
        if !has_etcd(test) || !has_mongo(test) {
            return None;
        }
        let alone = ALONE.lock().await;
        let dir = TestDir::new(test);
        let site = site(&dir);
        let etcd = Server::etcd(&site, None, etcd_flags).await.unwrap();
        let mongo = Server::mongo(&site, None).await.unwrap();
        Some(Self {
            workers: Vec::new(),
            watch: None,
            mongo,
            etcd,
            dir,
            site,
            credentials: None,
            _alone: alone,
        })
    }

    /// The addresses of the stores.
    #[must_use]
    pub fn stores(&self) -> Stores {
        Stores { etcd: self.etcd.url(), mongodb: self.mongo.url() }
    }

    /// Starts a worker called `id` and waits until it is in the fleet.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn worker(&mut self, id: &str, settings: &[(&str, &str)]) -> &mut Worker {
        self.worker_of(&program("worker").await, id, settings).await
    }

    /// [`Self::worker`], started by a program that becomes one.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn worker_of(&mut self, program: &Path, id: &str, settings: &[(&str, &str)]) -> &mut Worker {
        let worker = Worker::start(&self.site, program, &self.stores(), id, settings).await.unwrap();
        self.workers.push(worker);
        let key = format!("/cron/workers/{id}");
        wait_for("the worker's registration", SOON, async || self.get(&key).await).await;
        self.workers.last_mut().unwrap()
    }

    /// Starts the functions; `None`, loudly, without cargo-lambda.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn watch(&mut self, test: &str) -> Option<String> {
        let cargo_lambda = match tokio::task::spawn_blocking(provision::cargo_lambda).await.unwrap() {
            Ok(found) => found.program,
            Err(missing) => {
                skip(test, &missing.what);
                return None;
            }
        };
        let watch = Watch::start(&self.site, &cargo_lambda, &self.stores(), None).await.unwrap();
        let url = watch.url();
        self.watch = Some(watch);
        Some(url)
    }

    /// A client of etcd, as other hands would use it.
    ///
    /// # Panics
    /// When etcd is away.
    pub async fn kv(&self) -> etcd_client::Client {
        let options =
            self.credentials.map(|(user, password)| ConnectOptions::new().with_user(user, password));
        etcd_client::Client::connect([self.etcd.url()], options).await.unwrap()
    }

    /// Puts a key by other hands (`etcdctl put`).
    ///
    /// # Panics
    /// When etcd is away.
    pub async fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.kv().await.put(key, value, None).await.unwrap();
    }

    /// Puts a key by other hands, with a lease that nobody keeps alive.
    ///
    /// # Panics
    /// When etcd is away.
    pub async fn put_leased(&self, key: &str, value: &str, ttl_seconds: i64) {
        let mut kv = self.kv().await;
        let lease = kv.lease_grant(ttl_seconds, None).await.unwrap().id();
        kv.put(key, value, Some(PutOptions::new().with_lease(lease))).await.unwrap();
    }

    /// Deletes every key with a prefix.
    ///
    /// # Panics
    /// When etcd is away.
    pub async fn delete_prefix(&self, prefix: &str) {
        let options = etcd_client::DeleteOptions::new().with_prefix();
        self.kv().await.delete(prefix, Some(options)).await.unwrap();
    }

    /// Reads a key.
    ///
    /// # Panics
    /// When etcd is away.
    pub async fn get(&self, key: &str) -> Option<Vec<u8>> {
        let reply = self.kv().await.get(key, None).await.unwrap();
        reply.kvs().first().map(|pair| pair.value().to_vec())
    }

    /// The keys with a prefix.
    ///
    /// # Panics
    /// When etcd is away.
    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
        let reply = self.kv().await.get(prefix, Some(options)).await.unwrap();
        reply.kvs().iter().map(|pair| String::from_utf8_lossy(pair.key()).into_owned()).collect()
    }

    /// Puts a job by other hands: the seed's three fields.
    ///
    /// # Panics
    /// When etcd is away.
    pub async fn put_job(&self, name: &str, command: &str, cron_expr: &str) {
        let job = serde_json::json!({"name": name, "command": command, "cronExpr": cron_expr});
        self.put(format!("/cron/jobs/{name}"), job.to_string()).await;
    }

    /// See [`put_counting_jobs`].
    ///
    /// # Panics
    /// When etcd is away.
    pub async fn put_counting_jobs(&self, number: usize) -> Vec<Counting> {
        put_counting_jobs(&mut self.kv().await, self.dir.path(), number, &serde_json::json!({})).await
    }

    /// The records of a job as MongoDB has them, by plan time.
    ///
    /// # Panics
    /// When MongoDB is away.
    pub async fn records(&self, job: &str) -> Vec<Document> {
        let mut records = self.all_records().await;
        records.retain(|record| record.get_str("jobName").is_ok_and(|name| name == job));
        records
    }

    /// Every record, by plan time.
    ///
    /// # Panics
    /// When MongoDB is away.
    pub async fn all_records(&self) -> Vec<Document> {
        all_records(&self.mongo.url()).await
    }

    /// Waits until a job has a record that `like` accepts.
    ///
    /// # Panics
    /// When none comes.
    pub async fn record(&self, job: &str, like: impl Fn(&Document) -> bool) -> Document {
        wait_for(&format!("a record of {job}"), SOON, async || {
            self.records(job).await.into_iter().find(&like)
        })
        .await
    }
}

/// Puts jobs that each append a line `name planTime` to a file of their own in `dir` in every second, with these further fields.
///
/// # Panics
/// When etcd is away.
pub async fn put_counting_jobs(
    kv: &mut etcd_client::Client,
    dir: &Path,
    number: usize,
    more: &serde_json::Value,
) -> Vec<Counting> {
    let mut jobs = Vec::new();
    for n in 0..number {
        let job = Counting { name: format!("count-{n}"), file: dir.join(format!("count-{n}.out")) };
        let mut definition = more.clone();
        definition["name"] = job.name.as_str().into();
        definition["command"] =
            format!("echo \"$CRON_JOB_NAME $CRON_PLAN_TIME\" >> '{}'", job.file.display()).into();
        definition["cronExpr"] = "* * * * * * *".into();
        kv.put(format!("/cron/jobs/{}", job.name), definition.to_string(), None).await.unwrap();
        jobs.push(job);
    }
    jobs
}

/// Every record of the MongoDB at this URL, by plan time.
///
/// # Panics
/// When it is away.
pub async fn all_records(url: &str) -> Vec<Document> {
    let client = mongodb::Client::with_uri_str(url).await.unwrap();
    let log = client.database("cron").collection::<Document>("log");
    let mut records: Vec<Document> = log.find(doc! {}).await.unwrap().try_collect().await.unwrap();
    records.sort_by_key(|record| number(record, "planTime"));
    records
}

/// A number of a record, whatever width it was stored in.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn number(record: &Document, field: &str) -> i64 {
    match record.get(field) {
        Some(Bson::Int64(number)) => *number,
        Some(Bson::Int32(number)) => i64::from(*number),
        other => panic!("{field} is {other:?} in {record}"),
    }
}

/// A record's status, empty when it has none.
#[must_use]
pub fn status(record: &Document) -> &str {
    record.get_str("status").unwrap_or_default()
}

/// A job whose runs leave a line each.
pub struct Counting {
    /// The job's name.
    pub name: String,
    /// Where its runs leave their lines.
    pub file: PathBuf,
}

impl Counting {
    /// The plan times of the runs so far, in seconds and in the order of the runs.
    ///
    /// # Panics
    /// When a line is not as the job writes it.
    #[must_use]
    pub fn seconds(&self) -> Vec<i64> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines()
            .map(|line| {
                let ms = line.strip_prefix(&self.name).and_then(|rest| rest.trim().parse::<i64>().ok());
                let ms = ms.unwrap_or_else(|| panic!("not a line of {}: {line:?}", self.name));
                assert_eq!(ms % 1000, 0, "a plan time of an every-second job: {line:?}");
                ms / 1000
            })
            .collect()
    }
}

/// The processes whose command line is exactly these words.
#[must_use]
pub fn processes_of(words: &[&str]) -> Vec<i32> {
    let wanted: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted))
        .collect()
}
