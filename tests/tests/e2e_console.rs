//! The web console in a real browser, on a real `local-dev`: `tests/console/run.mjs` drives it; each of its cases is a check here.
//!
//! Pictures of every view go to `target/test-logs/console`. Without Chromium or Node.js the test says SKIPPED.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get};
use local_dev::native::servers::Site;
use local_dev::native::{provision, target, workspace};
use rustix::process::Signal;
use tests::fixtures::{SOON, TestDir, program, site, skip};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

/// No run takes so long; one that does hangs.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// Labels that would be a script, if they were markup.
const LABELS: &str = "zone=<img src=x onerror=alert(1)>,gpu=\"><script>alert(2)</script>";

/// A worker may be called so.
const WORKER: &str = "worker-one <img src=x onerror=alert(11)>";

/// Starts `local-dev` on its port and data, as often as it is asked to.
struct Api {
    program: PathBuf,
    port: u16,
    site: Site,
}

impl Api {
    /// Starts it; `auth` is `CRON_AUTH`.
    async fn start(&self, auth: &str) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.program);
        command
            .env("CRON_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("CRON_DATA_DIR", self.site.dir.join("data"))
            .env("CRON_AUTH", auth)
            .env("CRON_WORKER_LABELS", LABELS)
            .env("CRON_WORKER_ID", WORKER);
        let mut process = self.site.start("local-dev", command)?;
        let address = ([127, 0, 0, 1], self.port).into();
        process.ready(async || get(address, "/").await.is_some_and(|(status, _)| status == 200)).await?;
        Ok(process)
    }
}

#[tokio::test]
async fn the_console_does_what_people_ask_of_it() {
    const TEST: &str = "the_console_does_what_people_ask_of_it";
    let tools = match tokio::task::spawn_blocking(provision::console_tools).await.unwrap() {
        Ok(tools) => tools,
        Err(missing) => return skip(TEST, &missing.to_string()),
    };
    let dir = TestDir::new(TEST);
    let api = Api { program: program("local-dev").await, port: free_port().unwrap(), site: site(&dir) };
    let pictures = target().join("test-logs/console");
    std::fs::create_dir_all(&pictures).unwrap();
    let cases = common::clock::timeout(LIMIT, drive(&tools, &api, &pictures))
        .await
        .expect("the browser's cases hang");
    let failed: Vec<&String> = cases.iter().filter(|case| !case.starts_with("ok ")).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(cases.len() > 20, "only these cases were run: {cases:#?}");
}

/// Runs the script; its cases, each as `ok …` or `not ok …`. It asks on its output for `local-dev` to be ended and started.
async fn drive(tools: &provision::ConsoleTools, api: &Api, pictures: &Path) -> Vec<String> {
    let mut server = Some(api.start("open").await.unwrap());
    let mut node = tokio::process::Command::new(&tools.node)
        .arg(workspace().join("tests/console/run.mjs"))
        .env("FLEETCRON_URL", format!("http://127.0.0.1:{}/", api.port))
        .env("FLEETCRON_BROWSER", &tools.browser)
        .env("FLEETCRON_MODULES", &tools.modules)
        .env("FLEETCRON_PICTURES", pictures)
        .env("FLEETCRON_WORKER", WORKER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut orders, output) = (node.stdin.take().unwrap(), node.stdout.take().unwrap());
    let mut lines = BufReader::new(output).lines();
    let mut cases = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        println!("{line}");
        match line.as_str() {
            "please kill" => {
                if let Some(mut server) = server.take() {
                    server.kill();
                }
                orders.write_all(b"done\n").await.unwrap();
            }
            "please start" => {
                server = Some(api.start("open").await.unwrap());
                orders.write_all(b"done\n").await.unwrap();
            }
            "please start with tokens" => {
                if let Some(mut server) = server.take() {
                    server.stop(Signal::TERM, SOON).await;
                }
                server = Some(api.start("required").await.unwrap());
                orders.write_all(b"done\n").await.unwrap();
            }
            _ if line.starts_with("ok ") || line.starts_with("not ok ") => cases.push(line),
            _ => {}
        }
    }
    let ended = node.wait().await.unwrap();
    if !ended.success() {
        cases.push(format!("not ok the script ended with {ended}"));
    }
    cases
}
