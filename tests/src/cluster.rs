//! Three members of etcd as one cluster, each a process that can be killed, frozen and started again by itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use common::clock::timeout;
use etcd_client::{AlarmAction, AlarmType, Client};
use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get};
use local_dev::native::provision;
use local_dev::native::servers::Site;

/// How many members there are: one may be away, and the others are still the majority.
pub const MEMBERS: usize = 3;
/// A port that was free a moment ago can be taken by the time a member binds it: others are tried so often.
const START_ATTEMPTS: u32 = 3;
/// A member that does not say within this whether it leads is not asked further.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// The cluster.
pub struct Cluster {
    site: Site,
    members: Vec<Member>,
}

struct Member {
    name: String,
    client: SocketAddr,
    words: Vec<String>,
    process: Process,
}

impl Cluster {
    /// Starts all members, with their data below the site's directory, and waits until they have a leader.
    ///
    /// # Errors
    /// When they do not start; with the end of a log.
    pub async fn start(site: &Site) -> anyhow::Result<Self> {
        let mut attempt = 1;
        loop {
            let started = async {
                let mut cluster = Self::spawn(site)?;
                cluster.ready().await?;
                anyhow::Ok(cluster)
            };
            match started.await {
                Err(_port_taken) if attempt < START_ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    fn spawn(site: &Site) -> anyhow::Result<Self> {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut addresses = Vec::new();
        for number in 1..=MEMBERS {
            let (client, peer) = (loopback(free_port()?), loopback(free_port()?));
            addresses.push((format!("etcd-{number}"), client, peer));
        }
        let all = addresses.iter().map(|(name, _, peer)| format!("{name}=http://{peer}"));
        let all = all.collect::<Vec<_>>().join(",");
        let mut members = Vec::new();
        for (name, client, peer) in addresses {
            let dir = site.dir.join(&name);
            if dir.exists() {
                // Of an attempt with other ports: its data name them.
                std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
            }
            let words = vec![
                format!("--name={name}"),
                format!("--data-dir={}", dir.display()),
                format!("--listen-client-urls=http://{client}"),
                format!("--advertise-client-urls=http://{client}"),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-advertise-peer-urls=http://{peer}"),
                format!("--initial-cluster={all}"),
                "--log-level=warn".to_owned(),
            ];
            let process = site.serve(&name, &provision::etcd_path(), &words)?;
            members.push(Member { name, client, words, process });
        }
        Ok(Self { site: site.clone(), members })
    }

    /// Where the members take clients.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// The members' URLs, for `CRON_ETCD_ENDPOINTS`.
    #[must_use]
    pub fn endpoints(&self) -> String {
        self.addresses().iter().map(|address| format!("http://{address}")).collect::<Vec<_>>().join(",")
    }

    /// A client of all members.
    ///
    /// # Errors
    /// When none is there.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let endpoints: Vec<String> =
            self.addresses().iter().map(|address| format!("http://{address}")).collect();
        Client::connect(endpoints, None).await.context("connect to the cluster")
    }

    /// The member that leads, if one says so.
    pub async fn leader(&self) -> Option<usize> {
        for (number, member) in self.members.iter().enumerate() {
            let ask = async {
                let mut client = Client::connect([format!("http://{}", member.client)], None).await.ok()?;
                let status = client.status().await.ok()?;
                (status.header()?.member_id() == status.leader()).then_some(())
            };
            if timeout(STATUS_LIMIT, ask).await.ok().flatten().is_some() {
                return Some(number);
            }
        }
        None
    }

    /// Kills a member (SIGKILL); its data stay.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process.kill();
    }

    /// Starts a member again that was killed, on the same ports and data, and does not wait.
    ///
    /// # Errors
    /// When its program or log cannot be opened.
    pub fn start_again(&mut self, member: usize) -> anyhow::Result<()> {
        let member = &mut self.members[member];
        member.process = self.site.serve(&member.name, &provision::etcd_path(), &member.words)?;
        Ok(())
    }

    /// Stops a member in its tracks: its connections stay, answers do not come.
    pub fn freeze(&mut self, member: usize) {
        self.members[member].process.freeze();
    }

    /// Lets it go on.
    pub fn thaw(&mut self, member: usize) {
        self.members[member].process.thaw();
    }

    /// Waits until every member is there and knows a leader.
    ///
    /// # Errors
    /// When one ends instead, or takes over a minute; with the end of its log.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            let address = member.client;
            // A member is healthy when a read through the leader succeeds.
            let healthy =
                async || get(address, "/health").await.is_some_and(|(_, body)| body.contains("\"true\""));
            member.process.ready(healthy).await?;
        }
        Ok(())
    }

    /// Looks whether the members are as they should be: no alarm, and one history.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check(&self) -> anyhow::Result<()> {
        let mut hashes = Vec::new();
        for member in &self.members {
            let mut client = Client::connect([format!("http://{}", member.client)], None).await?;
            // A read through the leader: this member has applied everything of before.
            let reply = client.get("/", None).await?;
            let revision = reply.header().context("an answer without a header")?.revision();
            let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
            ensure!(
                alarms.alarms().is_empty(),
                "{} has an alarm (out of space, or broken data)",
                member.name
            );
            hashes.push((client.hash_kv(revision).await?.hash(), revision));
        }
        ensure!(hashes.iter().all(|hash| *hash == hashes[0]), "the members differ: {hashes:?}");
        Ok(())
    }
}
