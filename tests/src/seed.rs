//! The stand-in of the seed (tests/servers/seed) beside a fleet: its worker, its master, and an API of ours on the same stores.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get, server_command};
use local_dev::native::provision;

use crate::fixtures::{self, Fleet, SOON, skip, wait_for};

/// The stand-in, when it is there; else the test says why it does not run.
#[must_use]
pub fn program(test: &str) -> Option<PathBuf> {
    let path = provision::seed_path();
    if path.exists() {
        return Some(path);
    }
    skip(test, "no stand-in of the seed in target/servers");
    None
}

/// An HTTP server of either kind.
pub struct Api {
    /// The base of all URLs, without a slash at the end.
    pub url: String,
    _process: Process,
}

impl Fleet {
    /// Starts a seed worker that registers as `id`, and waits until it has.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn seed_worker(&self, id: &str) -> Process {
        let mut command = self.seed_command("worker");
        command.args(["-id", id]);
        let process = self.site.start(id, command).unwrap();
        let key = format!("/cron/workers/{id}");
        wait_for("the seed worker's registration", SOON, async || self.get(&key).await.filter(Vec::is_empty))
            .await;
        process
    }

    /// Starts a seed master.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn seed_master(&self) -> Api {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut command = self.seed_command("master");
        command.args(["-listen", &address.to_string()]);
        self.api("seed-master", command, address).await
    }

    /// Starts our API alone on the fleet's stores: `local-dev` without workers.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn our_api(&self) -> Api {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let stores = self.stores();
        let mut command = Command::new(fixtures::program("local-dev").await);
        command
            .env("CRON_ETCD_ENDPOINTS", stores.etcd)
            .env("CRON_MONGODB_URI", stores.mongodb)
            .env("CRON_WORKERS", "0")
            .env("CRON_LISTEN", address.to_string())
            .env("CRON_DATA_DIR", self.site.dir.join("local-dev"));
        self.api("local-dev", command, address).await
    }

    fn seed_command(&self, word: &str) -> Command {
        let stores = self.stores();
        let mut command = server_command(&provision::seed_path());
        command.arg(word).args([
            "-etcd",
            stores.etcd.trim_start_matches("http://"),
            "-mongo",
            &stores.mongodb,
        ]);
        command
    }

    async fn api(&self, name: &str, command: Command, address: SocketAddr) -> Api {
        let mut process = self.site.start(name, command).unwrap();
        process.ready(async || get(address, "/worker/list").await.is_some()).await.unwrap();
        Api { url: format!("http://{address}"), _process: process }
    }
}
