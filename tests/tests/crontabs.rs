//! Crontabs as packages and people write them (`testdata/crontabs`, `*.system` with a user column and `*.user` without), imported, previewed
//! and exported. What each line means is in the golden file beside it: `UPDATE_GOLDEN=1 cargo test -p tests --test crontabs` writes them
//! anew, to be read as a diff.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use common::clock::{Clock, Timestamp};
use common::domain::access::Principal;
use common::kv::embedded::EmbeddedKv;
use common::run_log::embedded::EmbeddedRunLog;
use functions::Ports;
use lambda_http::{Body, Request, RequestExt as _};
use serde_json::{Value, json};

/// 2026-11-21T00:00:00Z, when all these tests play.
const NOW: Timestamp = Timestamp::from_ms(1_795_219_200_000);

struct StoppedClock;

#[async_trait]
impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        NOW
    }

    async fn sleep_until(&self, _deadline: Timestamp) {}
}

fn ports() -> Ports {
    Ports {
        kv: Arc::new(EmbeddedKv::in_memory().unwrap()),
        run_log: Arc::new(EmbeddedRunLog::in_memory().unwrap()),
        clock: Arc::new(StoppedClock),
    }
}

/// The `data` of an answer that has to be good.
async fn data(ports: &Ports, method: &str, path: &str, body: &str) -> Value {
    let request =
        lambda_http::http::Request::builder().extension(Principal::anybody()).method(method).uri(path);
    let request: Request =
        request.header("content-type", "text/plain").body(Body::Text(body.to_owned())).unwrap();
    let raw_path = request.uri().path().to_owned();
    let response = functions::handle(ports, request.with_raw_http_path(raw_path)).await;
    let Body::Text(text) = response.body() else { panic!("{path}: no text") };
    let mut answer: Value = serde_json::from_str(text).unwrap();
    assert_eq!(answer["errno"], 0, "{path}: {answer}");
    answer["data"].take()
}

fn files() -> Vec<(PathBuf, &'static str)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/crontabs");
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let format = |path: &PathBuf| {
        let extension = path.extension()?.to_str()?;
        ["system", "user"].into_iter().find(|format| *format == extension)
    };
    let mut files: Vec<_> = entries.filter_map(|path| format(&path).map(|format| (path, format))).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    files
}

#[tokio::test]
async fn every_line_has_the_meaning_that_is_written_beside_it() {
    #[expect(clippy::disallowed_methods, reason = "a switch for whoever edits the tables, no setting")]
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (path, format) in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let [plan, chinese] = ["en", "zh"].map(|lang| format!("/job/import?format={format}&lang={lang}"));
        let mut plan = data(&ports(), "POST", &plan, &text).await;
        let chinese = data(&ports(), "POST", &chinese, &text).await;
        for (job, chinese) in
            plan["jobs"].as_array_mut().unwrap().iter_mut().zip(chinese["jobs"].as_array().unwrap())
        {
            job["zh"] = chinese["description"].clone();
        }
        let golden = path.with_extension(format!("{format}.json"));
        if update {
            std::fs::write(&golden, serde_json::to_string_pretty(&plan).unwrap() + "\n").unwrap();
        }
        let expected: Value = serde_json::from_str(&std::fs::read_to_string(&golden).unwrap()).unwrap();
        assert_eq!(plan, expected, "{}", path.display());
    }
}

#[tokio::test]
async fn no_line_is_passed_over() {
    for (path, format) in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let plan = data(&ports(), "POST", &format!("/job/import?format={format}"), &text).await;
        let told =
            |list: &str| plan[list].as_array().unwrap().iter().map(|one| one["line"].as_u64().unwrap());
        let told: Vec<u64> = told("jobs").chain(told("refused")).collect();
        for (line, text) in (1..).zip(text.lines()) {
            let says_something = !text.trim().is_empty() && !text.trim_start().starts_with('#');
            let is_setting =
                text.split_once('=').is_some_and(|(name, _)| !name.trim().contains([' ', '\t', '*', '/']));
            assert_eq!(
                told.contains(&line),
                says_something && !is_setting,
                "{} line {line}: {text}",
                path.display()
            );
        }
    }
}

#[tokio::test]
async fn what_is_exported_is_imported_as_it_was() {
    for (path, format) in files() {
        let (ports, text) = (ports(), std::fs::read_to_string(&path).unwrap());
        let import = format!("/job/import?format={format}&apply=true&prefix=p.");
        let first = data(&ports, "POST", &import, &text).await;
        let jobs = data(&ports, "GET", "/job/list", "").await;
        let many = jobs.as_array().unwrap().len();
        assert_eq!(first["counts"]["create"], many, "{}", path.display());
        // The same file once more, and with its lines turned around, asks for nothing.
        let again = data(&ports, "POST", &format!("{import}&prune=true"), &text).await;
        assert_eq!(again["counts"]["keep"], many, "{}: {again}", path.display());
        for export in ["system", "user", "json"] {
            let exported = data(&ports, "GET", &format!("/job/export?format={export}"), "").await;
            let exported = exported.as_str().map_or_else(|| exported.to_string(), str::to_owned);
            let other = self::ports();
            let imported =
                data(&other, "POST", &format!("/job/import?format={export}&apply=true"), &exported).await;
            assert_eq!(imported["refused"], json!([]), "{} as {export}: {exported}", path.display());
            assert_eq!(
                data(&other, "GET", "/job/list", "").await,
                jobs,
                "{} as {export}: {exported}",
                path.display()
            );
            // Lines of a crontab stay lines where the format has a place for them.
            let lines = exported
                .lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.contains('='));
            assert!(export != format || lines.count() > 0, "{}: {exported}", path.display());
        }
    }
}
