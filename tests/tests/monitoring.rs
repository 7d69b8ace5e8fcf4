//! `infra/monitoring`: alert rules and dashboard, checked by promtool and held against what a worker says of itself.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::clock::{Clock as _, SystemClock};
use common::config::{self, Invocation};
use common::kv::embedded::EmbeddedKv;
use common::run_log::embedded::EmbeddedRunLog;
use local_dev::native::process::get;
use local_dev::native::{provision, workspace};
use serde_json::Value;
use tests::fixtures::{SOON, TestDir, skip, wait_for};
use tokio::net::TcpListener;
use worker::data_dir::DataDir;
use worker::guardian::Guard;
use worker::{Options, Ports, Worker, health, identity};

/// What Prometheus itself makes: of each scrape, and of each alert.
const OF_PROMETHEUS: [&str; 2] = ["up", "ALERTS"];

fn file(name: &str) -> PathBuf {
    workspace().join("infra/monitoring").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Runs promtool beside the rules and returns what it said; `None`, loudly, where there is none.
fn promtool(test: &str, arguments: &[&str], input: &str) -> Option<String> {
    let program = provision::promtool_path();
    if !program.exists() {
        skip(test, "no promtool in target/tools");
        return None;
    }
    let mut command = Command::new(program);
    command.args(arguments).current_dir(file("")).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may answer, and end, before it has read all.
    let _refused = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "promtool {}: {said}", arguments.join(" "));
    Some(said)
}

/// The alert rules.
fn rules() -> Vec<Value> {
    let rules: Value = serde_saphyr::from_str(&read(&file("alerts.yaml"))).unwrap();
    rules["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap().clone()).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read(&file("dashboard.json"))).unwrap()
}

/// The dashboard's expressions, with its variables as Grafana would fill them in.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    targets
        .chain(annotations.iter().cloned())
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .map(|expr| {
            expr.replace("$__rate_interval", "1m").replace("$job", "fleetcron").replace("$instance", ".*")
        })
        .collect()
}

/// What a worker answers to `/metrics`, on stores of its own in this process.
async fn metrics() -> String {
    let dir = TestDir::new("monitoring");
    let parsed = config::parse("worker", std::iter::empty(), std::iter::empty()).unwrap();
    let Invocation::Run(settings) = parsed else { panic!("it does not run") };
    let data_dir = DataDir::open(Some(dir.path())).unwrap();
    let identity = identity::identity(&settings, data_dir.instance.clone(), SystemClock.now());
    let options = Options::new(&settings, identity, &data_dir, Guard::none());
    let ports = Ports {
        kv: Arc::new(EmbeddedKv::in_memory().unwrap()),
        run_log: Arc::new(EmbeddedRunLog::in_memory().unwrap()),
        clock: Arc::new(SystemClock),
    };
    let mut worker = Worker::start(ports, options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(health::serve(listener, worker.status()));
    wait_for("the worker to be in the fleet", SOON, async || {
        get(address, "/readyz").await.filter(|(status, _)| *status == 200)
    })
    .await;
    let (_, metrics) = get(address, "/metrics").await.unwrap();
    worker.drain().await;
    worker.left().await.unwrap();
    serving.abort();
    metrics
}

/// The names of series that a worker has, those of a histogram's parts among them.
fn series(metrics: &str) -> BTreeSet<String> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect()
}

/// What in an expression may be the name of a series: words outside of quotes that are followed by no parenthesis and are not labels.
fn names(expr: &str) -> BTreeSet<String> {
    let unquoted: String = expr.split('"').step_by(2).collect();
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = unquoted.split(|c| !is_part(c));
    let is_ours = |word: &&str| ["fleetcron_", "process_"].iter().any(|prefix| word.starts_with(prefix));
    words.filter(|word| is_ours(word) || OF_PROMETHEUS.contains(word)).map(str::to_owned).collect()
}

#[test]
fn promtool_finds_nothing_wrong_with_the_rules_and_each_alert_fires_when_it_should() {
    let test = "monitoring-rules";
    if promtool(test, &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"], "").is_none() {
        return;
    }
    promtool(test, &["check", "config", "prometheus.yaml"], "");
    promtool(test, &["test", "rules", "alerts_test.yaml"], "");
    let tried = read(&file("alerts_test.yaml"));
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(
            tried.contains(&format!("alertname=\"{name}\"")),
            "alerts_test.yaml does not make {name} fire"
        );
    }
}

#[test]
fn each_alert_says_how_bad_it_is_and_what_to_do_and_has_its_place_in_the_runbook() {
    let runbook = read(&workspace().join("infra/RUNBOOK.md"));
    let (_, alarms) = runbook.split_once("\n## What each alarm means\n").unwrap();
    let alarms = alarms.split("\n## ").next().unwrap();
    let known: BTreeSet<&str> =
        alarms.lines().filter_map(|line| line.strip_prefix("### Fleetcron")).collect();
    let rules = rules();
    let mut named = BTreeSet::new();
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
        let annotation = |kind: &str| rule["annotations"][kind].as_str().unwrap_or_default();
        for kind in ["summary", "description"] {
            assert!(annotation(kind).len() > 20, "{name} has no {kind}");
        }
        assert_eq!(annotation("runbook_url"), format!("infra/RUNBOOK.md#{}", name.to_lowercase()));
        let (_, text) =
            alarms.split_once(&format!("\n### {name}\n")).unwrap_or_else(|| panic!("{name} is not in it"));
        assert!(
            text.trim_start().starts_with(&format!("*{severity}.* ")),
            "{name} is {severity} in the rules"
        );
        named.insert(name.strip_prefix("Fleetcron").unwrap());
    }
    assert_eq!(named, known, "the runbook's alarms are those that there are");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_alerts_and_dashboard_is_one_that_a_worker_has() {
    let metrics = metrics().await;
    let mut known = series(&metrics);
    assert!(known.len() > 30, "{metrics}");
    known.extend(OF_PROMETHEUS.map(str::to_owned));
    let rules: Vec<String> = rules().iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect();
    for expr in rules.iter().chain(&expressions(&dashboard())) {
        let names = names(expr);
        assert!(!names.is_empty(), "{expr} asks for nothing");
        for name in names {
            assert!(known.contains(&name), "{expr}: no worker has {name}");
        }
    }
    // What is tried is what there is, too: a test with a misspelt series would say that all is well.
    let tried: Value = serde_saphyr::from_str(&read(&file("alerts_test.yaml"))).unwrap();
    for one in tried["tests"].as_array().unwrap() {
        for input in one["input_series"].as_array().unwrap() {
            for name in names(input["series"].as_str().unwrap()) {
                assert!(known.contains(&name), "alerts_test.yaml: no worker has {name}");
            }
        }
    }
    let runbook = read(&workspace().join("infra/RUNBOOK.md")).replace('"', " ");
    for name in names(&runbook) {
        let is_histogram = known.contains(&format!("{name}_count"));
        assert!(is_histogram || known.contains(&name), "RUNBOOK.md: no worker has {name}");
    }
    let test = "monitoring-metrics";
    if let Some(said) = promtool(test, &["check", "metrics"], &metrics) {
        assert_eq!(said, "", "promtool finds faults");
    }
}

#[test]
fn the_dashboard_can_be_imported_with_any_data_source_and_its_expressions_are_promql() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!((&variables[0]["name"], &variables[0]["type"]), (&"datasource".into(), &"datasource".into()));
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels have the id {}", panel["id"]);
        let place = &panel["gridPos"];
        assert!(places.insert((place["y"].as_u64(), place["x"].as_u64())), "two panels are at {place}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
    let rule =
        |(n, expr): (usize, &String)| serde_json::json!({"record": format!("panel:{n}"), "expr": expr});
    let rules: Vec<Value> = expressions(&dashboard).iter().enumerate().map(rule).collect();
    let dir = TestDir::new("monitoring-dashboard");
    let path = dir.path().join("dashboard-rules.json"); // JSON is YAML
    let group = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(&path, group.to_string()).unwrap();
    promtool("monitoring-dashboard", &["check", "rules", &path.to_string_lossy()], "");
}
