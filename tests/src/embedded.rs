//! local-dev on the embedded stores, as a process of a test's own.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get};

use crate::fixtures::{TestDir, program, site};

/// The API and workers in one process, without etcd and MongoDB.
pub struct Embedded {
    /// The process.
    pub process: Process,
    /// Where its API is.
    pub url: String,
    _dir: TestDir,
}

impl Embedded {
    /// Starts it with these settings, and waits until it answers.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(test: &str, settings: &[(&str, &str)]) -> Self {
        let dir = TestDir::new(test);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut command = Command::new(program("local-dev").await);
        command
            .env_remove("CRON_ETCD_ENDPOINTS")
            .env_remove("CRON_MONGODB_URI")
            .env("CRON_LISTEN", address.to_string())
            .env("CRON_DATA_DIR", dir.path().join("data"))
            .envs(settings.iter().copied())
            .current_dir(dir.path());
        let mut process = site(&dir).start("local-dev", command).unwrap();
        process.ready(async || get(address, "/job/list").await.is_some()).await.unwrap();
        Self { process, url: format!("http://{address}"), _dir: dir }
    }
}
