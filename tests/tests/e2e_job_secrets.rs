//! Secrets in jobs, on real parts: etcd, a MongoDB-protocol server, a worker process, the handlers in this process, and a stand-in of AWS. What
//! a job names arrives, and its value is nowhere else.
//!
//! Without etcd and a MongoDB-protocol server each test says SKIPPED; `cargo run -p tests` provisions them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request as Called, State};
use mongodb::bson::Document;
use serde_json::{Value, json};
use tests::api::Api;
use tests::aws::Aws;
use tests::fixtures::{Fleet, SOON, TestDir, status, wait_for};

/// A schedule that does not fire while a test goes.
const NEVER: &str = "0 0 0 29 2 *";

/// Whole requests that came: headers in lines, and the body.
type Came = Arc<Mutex<Vec<String>>>;

/// A server on this machine that answers with what it was sent.
async fn server(came: &Came) -> String {
    let echo = async |State(came): State<Came>, request: Called| -> String {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let headers =
            parts.headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
        let whole =
            format!("{} {}{}", parts.uri, headers.collect::<String>(), String::from_utf8_lossy(&body));
        came.lock().unwrap().push(whole.clone());
        whole
    };
    let routes = Router::new().fallback(echo).with_state(Came::clone(came));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

/// Saves a job that never fires.
async fn save(api: &Api, name: &str, mut job: Value) -> (u16, Value) {
    (job["name"], job["cronExpr"]) = (name.into(), NEVER.into());
    api.post("/job/save", &job).await
}

/// Has a job run; the run's id.
async fn run(api: &Api, name: &str) -> String {
    api.done("/job/run", &json!({ "name": name })).await["runId"].as_str().unwrap().to_owned()
}

fn text<'a>(record: &'a Document, field: &str) -> &'a str {
    record.get_str(field).unwrap()
}

/// The files beneath a directory that hold one of these texts: the stores' and the worker's data, and all logs.
fn holding(dir: &Path, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().filter_map(Result::ok) {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found.extend(holding(&path, texts));
        } else if kind.is_file()
            && let Ok(bytes) = std::fs::read(&path)
        {
            let has = |text: &&&str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
            found.extend(texts.iter().find(has).map(|text| format!("{}: {text}", path.display())));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_names_arrives_and_is_seen_nowhere_else() {
    let Some(mut fleet) = Fleet::start("job-secrets").await else { return };
    let outside = TestDir::new("job-secrets-operator");
    let (file, db) = (outside.path().join("secrets.json"), outside.path().join("db"));
    let operator = json!({"team/db": {"file": db}, "theirs": {"file": db, "jobs": ["theirs-"]}});
    std::fs::write(&file, operator.to_string()).unwrap();
    let (first, second) = ("first-pa55word&", "the-second-pa55word&");
    std::fs::write(&db, format!("{first}\n")).unwrap();
    let settings =
        [("CRON_SECRETS_FILE", file.to_str().unwrap()), ("CRON_HTTP_ALLOWED_NETWORKS", "127.0.0.1")];
    fleet.worker("w1", &settings).await;
    let (api, came) = (Api::of(&fleet), Came::default());
    let url = server(&came).await;

    // A command, seen while it goes.
    let end = fleet.dir.path().join("end");
    let command = format!(
        "echo ${{#DB}} $DB; printf '%s' \"${{DB:0:9}}\"; sleep 1.2; printf '%s\\n' \"${{DB:9}}\"; tr '\\0' ' ' </proc/$$/cmdline | grep -c \"$DB\"; \
         until [ -e {} ]; do sleep 0.1; done; printf '%s' \"$DB\" | base64",
        end.display()
    );
    let job = json!({"command": command, "env": {"DB": "secret:team/db", "OTHER": "a secret:b"}});
    assert_eq!(save(&api, "command", job).await.0, 200);
    let run_id = run(&api, "command").await;
    let live = "15 [secret:team/db]\n[secret:team/db]\n0\n";
    wait_for("what it prints", SOON, async || {
        let (_, reply) = api.get(&format!("/run/output?id={run_id}")).await;
        let output = reply["data"]["output"].as_str()?;
        assert!(live.starts_with(output), "{output}");
        (output == live && reply["data"]["ended"] == false).then_some(())
    })
    .await;
    std::fs::write(&end, "").unwrap();
    let record = fleet.record("command", |record| status(record) == "succeeded").await;
    assert_eq!(text(&record, "output"), format!("{live}[secret:team/db]\n"));

    // A rotated file is the next run's.
    std::fs::write(&db, second).unwrap();
    run(&api, "command").await;
    let rotated = |record: &Document| text(record, "output").starts_with("20 [secret:team/db]");
    fleet.record("command", rotated).await;

    // A request.
    let headers = json!({"Authorization": "Bearer secret:team/db", "X-Plain": "top:secret"});
    let http = json!({"method": "POST", "url": url, "headers": headers, "body": "{\"a\":\"x=secret:b\"}"});
    assert_eq!(save(&api, "request", json!({ "http": http })).await.0, 200);
    run(&api, "request").await;
    let record = fleet.record("request", |record| status(record) == "succeeded").await;
    assert!(text(&record, "output").contains("authorization: Bearer [secret:team/db]\n"), "{record}");
    assert!(came.lock().unwrap()[0].contains(&format!("authorization: Bearer {second}\n")));

    // What nobody may have.
    for (name, secret, why) in [
        ("unknown", "secret:nobodys", "secret:nobodys is not in this worker's CRON_SECRETS_FILE"),
        (
            "mine",
            "secret:theirs",
            "secret:theirs is not for this job: this worker's CRON_SECRETS_FILE names others",
        ),
    ] {
        assert_eq!(save(&api, name, json!({"command": "echo began", "env": {"A": secret}})).await.0, 200);
        run(&api, name).await;
        let record = fleet.record(name, |_| true).await;
        assert_eq!((status(&record), text(&record, "err"), text(&record, "output")), ("failed", why, ""));
    }
    let (code, reply) = save(&api, "bad", json!({"command": "true", "env": {"A": "secret:no such"}})).await;
    assert!(code == 400 && reply["msg"].as_str().unwrap().contains("letters, digits"), "{reply}");
    let with_env = json!({"name": "command", "env": {"A": "secret:team/db"}});
    let (code, reply) = api.post("/job/run", &with_env).await;
    assert!(code == 400 && reply["msg"].as_str().unwrap().contains("is for jobs alone"), "{reply}");

    // The reference is what everybody sees; the value stands in no file of stores and worker, and in no log.
    for path in ["/job/list", "/job/export?format=json", "/job/export", "/job/versions?name=command"] {
        let shown = api.get(path).await.1.to_string();
        assert!(shown.contains("secret:team/db") && !shown.contains("pa55word"), "{path}: {shown}");
    }
    fleet.workers[0].drain();
    fleet.workers[0].process().wait(SOON).await.unwrap();
    let found = holding(fleet.dir.path(), &["pa55word", "cGE1NXdvcm", "YTU1d29yZ", "hNTV3b3Jk"]);
    assert!(found.is_empty(), "{found:?}");
    assert!(!holding(fleet.dir.path(), &["secret:team/db"]).is_empty(), "it would be found");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_notifications_take_what_aws_keeps() {
    let Some(mut fleet) = Fleet::start("job-secrets-aws").await else { return };
    let Some(aws) = Aws::start(&fleet.site, "job-secrets-aws").await else { return };
    let came = Came::default();
    let hook = format!("{}/hook-4711", server(&came).await);
    aws.create_secret("fleetcron/jobs/api", &json!({"token": "pa55word-of-aws", "id": 5}).to_string()).await;
    aws.create_parameter("/fleetcron/jobs/refused", "pa55word-refused").await;
    aws.create_parameter("/fleetcron/hook", &hook).await;
    aws.permit("/fleetcron/jobs/refused", false);
    let outside = TestDir::new("job-secrets-aws-operator");
    let (secrets, channels) = (outside.path().join("secrets.json"), outside.path().join("channels.json"));
    let named =
        json!({"token": "secretsmanager:fleetcron/jobs/api#token", "refused": "ssm:/fleetcron/jobs/refused"});
    std::fs::write(&secrets, named.to_string()).unwrap();
    let hooks = json!({"channels": {"hook": {"kind": "webhook", "url": "ssm:/fleetcron/hook"}}});
    std::fs::write(&channels, hooks.to_string()).unwrap();
    let mut environment = aws.environment();
    environment.push(("CRON_SECRETS_FILE", secrets.display().to_string()));
    environment.push(("CRON_NOTIFY_FILE", channels.display().to_string()));
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    fleet.worker("w1", &environment).await;
    let api = Api::of(&fleet);

    // Claimed ahead and at its time: its secret is read once for all its fires of a minute.
    let ticking = json!({"name": "tick", "cronExpr": "* * * * * * *", "command": "echo $T ${#T}", "env": {"T": "secret:token"}});
    assert_eq!(api.post("/job/save", &ticking).await.0, 200);
    wait_for("three fires", SOON, async || {
        let records = fleet.records("tick").await;
        let good = |record: &&Document| text(record, "output") == "[secret:token] 15\n";
        (records.iter().filter(good).count() >= 3).then_some(())
    })
    .await;
    assert_eq!(aws.reads().iter().filter(|name| *name == "fleetcron/jobs/api").count(), 1);
    aws.rotate_secret("fleetcron/jobs/api", &json!({"token": "pa55word-after", "id": 5}).to_string()).await;

    let notify = json!({"on": ["failure"], "to": ["hook"]});
    let job = json!({"command": "true", "env": {"A": "secret:refused"}, "notify": notify});
    assert_eq!(save(&api, "refused", job).await.0, 200);
    run(&api, "refused").await;
    let record = fleet.record("refused", |_| true).await;
    let why = "secret:refused cannot be read: ssm: the worker may not read it; the worker's log says more";
    assert_eq!((status(&record), text(&record, "err")), ("failed", why));
    let log = std::fs::read_to_string(fleet.workers[0].process().log()).unwrap();
    assert!(log.contains("allow ssm:GetParameter on /fleetcron/jobs/refused"), "{log}");
    wait_for("the notification", SOON, async || {
        came.lock()
            .unwrap()
            .iter()
            .any(|told| told.starts_with("/hook-4711") && told.contains(why))
            .then_some(())
    })
    .await;
    // What was read before the rotation is used for a minute.
    wait_for("a run with the rotated secret", 2 * SOON, async || {
        let records = fleet.records("tick").await;
        records.iter().any(|record| text(record, "output") == "[secret:token] 14\n").then_some(())
    })
    .await;
    assert!(fleet.records("tick").await.iter().all(|record| status(record) != "failed"));
    let log = std::fs::read_to_string(fleet.workers[0].process().log()).unwrap();
    assert!(!log.contains("pa55word") && !log.contains("hook-4711"), "{log}");
}
