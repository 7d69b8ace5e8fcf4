//! `infra/smoke.sh` against local-dev: it passes where jobs run, and where they do not it says why and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Output};

use common::clock::timeout;
use local_dev::native::ports::free_port;
use local_dev::native::workspace;
use rustix::process::Signal;
use serde_json::Value;
use tests::embedded::Embedded;
use tests::fixtures::{SOON, TestDir, http, site, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A token that nobody has made.
const TOKEN: &str = "fct_0123456789ab_abcdefghijklmnopqrstuvwxyzabcdefghijklmnopq";

/// The API with so many workers.
async fn start(test: &str, workers: &str) -> Embedded {
    Embedded::start(test, &[("CRON_WORKERS", workers)]).await
}

/// The names of the jobs that the script made.
async fn smoke_jobs(api: &Embedded) -> Vec<String> {
    let answer = http().get(format!("{}/job/list?prefix=smoke-", api.url)).send().await.unwrap();
    let body: Value = answer.json().await.unwrap();
    let jobs = body["data"].as_array().unwrap().iter();
    jobs.map(|job| job["name"].as_str().unwrap().to_owned()).collect()
}

/// The script, without a token unless one is given.
fn smoke(words: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.arg(workspace().join("infra/smoke.sh")).args(words);
    command.env_remove("FLEETCRON_TOKEN");
    command
}

async fn run(mut command: Command) -> (Option<i32>, String) {
    let output: Output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_runs_jobs_passes_and_keeps_nothing() {
    let api = start("smoke-good", "1").await;
    let (code, said) = run(smoke(&["--timeout", "45", &format!("{}/", api.url)])).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the deployment works"), "{said}");
    assert_eq!(smoke_jobs(&api).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_it_fails_in_time_and_deletes_its_job() {
    let api = start("smoke-no-worker", "0").await;
    let (code, said) = run(smoke(&["--timeout", "1", &api.url])).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no run of smoke-") && said.contains(r#""data":[]"#), "{said}");
    assert_eq!(smoke_jobs(&api).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_it_deletes_its_job_too() {
    let api = start("smoke-ended", "0").await;
    let dir = TestDir::new("smoke-ended-script");
    let script = smoke(&["--timeout", "600", &api.url]);
    let mut script = site(&dir).start("smoke", script).unwrap();
    wait_for("the job", SOON, async || (!smoke_jobs(&api).await.is_empty()).then_some(())).await;
    script.signal(Signal::TERM);
    let ended = script.wait(SOON).await.unwrap();
    assert_eq!(ended.code(), Some(143), "{}", script.tail());
    assert_eq!(smoke_jobs(&api).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_whose_answer_was_lost_is_followed_by_a_delete() {
    let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", api.local_addr().unwrap());
    let lose_and_delete = async {
        // Closed without a word: the job may have been saved.
        let (unanswered, save) = request(&api).await;
        drop(unanswered);
        let (mut stream, delete) = request(&api).await;
        answer(&mut stream, "200 OK", r#"{"errno":0,"msg":"success","data":null}"#).await;
        (save, delete)
    };
    let (requests, (code, said)) =
        tokio::join!(timeout(SOON, lose_and_delete), run(smoke(&["--timeout", "1", &url])));
    assert_eq!(code, Some(1), "{said}");
    let (save, delete) = requests.unwrap_or_else(|_| panic!("two requests did not come: {said}"));
    assert!(save.starts_with("POST /job/save "), "{save}");
    let job: Value = serde_json::from_str(save.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert!(delete.starts_with("POST /job/delete "), "{delete}");
    assert!(delete.ends_with(&format!("\r\n\r\nname={}", job["name"].as_str().unwrap())), "{delete}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_api_fails_and_a_wrong_call_says_how_to_call() {
    let nobody = format!("http://127.0.0.1:{}", free_port().unwrap());
    let (code, said) = run(smoke(&[&nobody])).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("does not answer") && said.trim().lines().count() == 1, "{said}");

    let api = start("smoke-wrong-path", "0").await;
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
    assert!(said.contains("FLEETCRON_TOKEN"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_sent_and_is_on_no_command_line() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    let mut script = smoke(&[&url]);
    script.env("FLEETCRON_TOKEN", TOKEN);
    let refuse = async {
        let (mut stream, request) = request(&server).await;
        let command_lines = command_lines("curl");
        answer(&mut stream, "401 Unauthorized", r#"{"errno":-2,"msg":"no","data":null}"#).await;
        (request, command_lines)
    };
    let ((request, command_lines), (code, said)) = tokio::join!(refuse, run(script));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("401") && said.contains("FLEETCRON_TOKEN") && !said.contains(TOKEN), "{said}");
    let authorization =
        request.lines().find(|line| line.to_lowercase().starts_with("authorization:")).unwrap();
    assert_eq!(authorization.split_once(": ").unwrap().1, format!("Bearer {TOKEN}"));
    assert!(command_lines.contains("--config"), "curl was not seen: {command_lines}");
    assert!(!command_lines.contains(TOKEN));
}

/// The next request, its head and its body, and the connection that waits for the answer.
async fn request(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = String::new();
    loop {
        if let Some((head, body)) = request.split_once("\r\n\r\n")
            && body.len() >= content_length(head)
        {
            return (stream, request);
        }
        let mut piece = [0; 1024];
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the request ended early");
        request.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
}

fn content_length(head: &str) -> usize {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().map_or(0, |(_, length)| length.parse().unwrap())
}

async fn answer(stream: &mut TcpStream, status: &str, body: &str) {
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

/// The command lines of all processes of a program.
fn command_lines(program: &str) -> String {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let of_program = lines.filter(|line| {
        let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
        Path::new(&*String::from_utf8_lossy(name)).ends_with(program)
    });
    of_program.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}
