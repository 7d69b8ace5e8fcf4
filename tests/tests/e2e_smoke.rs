//! `infra/smoke.sh` against local-dev: it passes where jobs run, and where they do not it says why and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Output};

use local_dev::native::{process, programs, servers, workspace};
use rustix::process::Signal;
use serde_json::Value;
use tests::fixtures::{SOON, TestDir, http, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Credentials of the kind that AWS's own documents use; nobody has them.
const CREDENTIALS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "example-key"),
    ("AWS_SESSION_TOKEN", "example-token"),
];

/// The API with so many workers, on the embedded stores.
struct Api {
    process: process::Process,
    url: String,
    _dir: TestDir,
}

impl Api {
    async fn start(test: &str, workers: &str) -> Self {
        servers::build(&["--workspace", "--bin", "local-dev"]).await.unwrap();
        let dir = TestDir::new(test);
        let url = format!("http://127.0.0.1:{}", process::free_port().unwrap());
        let mut command = Command::new(programs().unwrap().join("local-dev"));
        command
            .env_remove("CRON_ETCD_ENDPOINTS")
            .env_remove("CRON_MONGODB_URI")
            .env("CRON_LISTEN", url.trim_start_matches("http://"))
            .env("CRON_DATA_DIR", dir.path().join("data"))
            .env("CRON_WORKERS", workers)
            .current_dir(dir.path());
        let mut process =
            process::Process::start("local-dev", command, &dir.path().join("log"), None).unwrap();
        wait_for("local-dev", SOON, async || {
            if let Some(status) = process.ended() {
                panic!("local-dev ended ({status}): {}", process.tail());
            }
            http().get(format!("{url}/job/list")).send().await.ok()
        })
        .await;
        Self { process, url, _dir: dir }
    }

    /// The names of the jobs that the script made.
    async fn smoke_jobs(&self) -> Vec<String> {
        let answer = http().get(format!("{}/job/list?prefix=smoke-", self.url)).send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        let jobs = body["data"].as_array().unwrap().iter();
        jobs.map(|job| job["name"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// The script, with nobody's credentials unless they are given.
fn smoke(words: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.arg(workspace().join("infra/smoke.sh")).args(words);
    for (name, _) in CREDENTIALS {
        command.env_remove(name);
    }
    command
}

async fn run(mut command: Command) -> (Option<i32>, String) {
    let output: Output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_runs_jobs_passes_and_keeps_nothing() {
    let api = Api::start("smoke-good", "1").await;
    let (code, said) = run(smoke(&["--timeout", "45", &format!("{}/", api.url)])).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the deployment works"), "{said}");
    assert_eq!(api.smoke_jobs().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_it_fails_in_time_and_deletes_its_job() {
    let api = Api::start("smoke-no-worker", "0").await;
    let (code, said) = run(smoke(&["--timeout", "1", &api.url])).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no run of smoke-") && said.contains(r#""data":[]"#), "{said}");
    assert_eq!(api.smoke_jobs().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_it_deletes_its_job_too() {
    let api = Api::start("smoke-ended", "0").await;
    let dir = TestDir::new("smoke-ended-script");
    let script = smoke(&["--timeout", "600", &api.url]);
    let mut script = process::Process::start("smoke", script, &dir.path().join("log"), None).unwrap();
    wait_for("the job", SOON, async || (!api.smoke_jobs().await.is_empty()).then_some(())).await;
    script.signal(Signal::TERM);
    let ended = script.wait(SOON).await.unwrap();
    assert_eq!(ended.code(), Some(143), "{}", script.tail());
    assert_eq!(api.smoke_jobs().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_api_fails_and_a_wrong_call_says_how_to_call() {
    let nobody = format!("http://127.0.0.1:{}", process::free_port().unwrap());
    let (code, said) = run(smoke(&[&nobody])).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("does not answer") && said.trim().lines().count() == 1, "{said}");

    let api = Api::start("smoke-wrong-path", "0").await;
    let (code, said) = run(smoke(&[&format!("{}/stage", api.url)])).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("404"), "{said}");

    let aws = "https://abc.execute-api.eu-central-1.amazonaws.com";
    for words in [vec![], vec!["example.com"], vec!["--timeout", "soon", aws], vec!["--what", aws], vec![aws]]
    {
        let (code, said) = run(smoke(&words)).await;
        assert_eq!(code, Some(2), "{words:?}: {said}");
    }
    let (_, said) = run(smoke(&[aws])).await;
    assert!(said.contains("AWS_ACCESS_KEY_ID"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_aws_are_signed_and_no_secret_is_on_a_command_line() {
    let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gateway.local_addr().unwrap());
    let mut script = smoke(&["--region", "eu-central-1", &url]);
    script.envs(CREDENTIALS);
    let (answered, (code, said)) = tokio::join!(refuse_one(&gateway), run(script));
    let (head, command_lines) = answered;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("403") && said.contains("signature"), "{said}");
    let authorization = head.lines().find(|line| line.to_lowercase().starts_with("authorization:")).unwrap();
    assert!(authorization.contains("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"), "{authorization}");
    assert!(authorization.contains("/eu-central-1/execute-api/aws4_request"), "{authorization}");
    assert!(authorization.contains("x-amz-security-token"), "the token is signed too: {authorization}");
    assert!(command_lines.contains("--config"), "curl was not seen: {command_lines}");
    for secret in ["example-key", "example-token"] {
        assert!(!command_lines.contains(secret), "{secret}");
    }
}

/// Takes one request and answers as the gateway does to a bad signature; the request's head, and the command lines of all curls then.
async fn refuse_one(gateway: &TcpListener) -> (String, String) {
    let (mut stream, _) = gateway.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 1024];
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the request ended early");
        head.extend(&piece[..read]);
    }
    let lines = command_lines("curl");
    let answer = "HTTP/1.1 403 Forbidden\r\ncontent-length: 23\r\nconnection: close\r\n\r\n{\"message\":\"Forbidden\"}";
    stream.write_all(answer.as_bytes()).await.unwrap();
    (String::from_utf8_lossy(&head).into_owned(), lines)
}

fn command_lines(program: &str) -> String {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let of_program = lines.filter(|line| {
        let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
        Path::new(&*String::from_utf8_lossy(name)).ends_with(program)
    });
    of_program.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}
