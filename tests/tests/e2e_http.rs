//! Jobs that send requests, on real parts: etcd, a MongoDB-protocol server, a worker process, the handlers in this process, and a server that
//! is called.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::{Request as Called, State};
use axum::response::Response as Answer;
use futures::StreamExt as _;
use mongodb::bson::Document;
use serde_json::{Value, json};
use tests::api::Api;
use tests::fixtures::{Fleet, SOON, number, status, wait_for};

/// A schedule that does not fire while a test goes.
const NEVER: &str = "0 0 0 29 2 *";

/// The requests that came, by path: the headers that say which run it is, and the body.
type Came = Arc<Mutex<Vec<(String, BTreeMap<String, String>, String)>>>;

/// A server on this machine: `/shaky` succeeds at the second attempt, `/endless` never ends its answer, `/away` leads to another address.
async fn server(came: &Came) -> String {
    let routes = Router::new().fallback(serve).with_state(Came::clone(came));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

async fn serve(State(came): State<Came>, request: Called) -> Answer {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let own = |name: &str| name == "idempotency-key" || name.starts_with("fleetcron-");
    let headers: BTreeMap<String, String> = parts
        .headers
        .iter()
        .filter(|(name, _)| own(name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let first = headers.get("fleetcron-attempt").is_some_and(|attempt| attempt == "1");
    let path = parts.uri.path().to_owned();
    came.lock().unwrap().push((path.clone(), headers, String::from_utf8(body.to_vec()).unwrap()));
    let answer = Answer::builder();
    match path.as_str() {
        "/shaky" if first => answer.status(503).body(AxumBody::from("not yet")),
        "/away" => answer.status(302).header("location", "http://127.0.0.2:1/").body(AxumBody::empty()),
        "/endless" => {
            let begin = futures::stream::iter([Ok::<_, std::io::Error>("begin\n")]);
            answer.body(AxumBody::from_stream(begin.chain(futures::stream::pending())))
        }
        _ => answer.body(AxumBody::from("done\n")),
    }
    .unwrap()
}

/// Saves a job that never fires, and has it run. Answers the run's id.
async fn run(api: &Api, name: &str, http: Value, options: Value) -> String {
    let mut job = options;
    (job["name"], job["cronExpr"], job["http"]) = (name.into(), NEVER.into(), http);
    api.done("/job/save", &job).await;
    api.done("/job/run", &json!({ "name": name })).await["runId"].as_str().unwrap().to_owned()
}

fn text<'a>(record: &'a Document, field: &str) -> &'a str {
    record.get_str(field).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_sends_its_request_and_the_answer_is_its_record() {
    let Some(mut fleet) = Fleet::start("http").await else { return };
    fleet.worker("w1", &[("CRON_HTTP_ALLOWED_NETWORKS", "127.0.0.1")]).await;
    let (api, came) = (Api::of(&fleet), Came::default());
    let url = server(&came).await;
    let came_to = |path: &str| -> Vec<(BTreeMap<String, String>, String)> {
        let came = came.lock().unwrap();
        let these = came.iter().filter(|(to, ..)| to == path);
        these.map(|(_, headers, body)| (headers.clone(), body.clone())).collect()
    };

    // By its schedule: each fire once, under its own key.
    let ticking =
        json!({"name": "tick", "cronExpr": "* * * * * * *", "http": {"url": format!("{url}/tick")}});
    api.done("/job/save", &ticking).await;
    let listed = api.get("/job/list?prefix=tick").await.1["data"][0].clone();
    assert_eq!((&listed["command"], &listed["http"]), (&json!(""), &ticking["http"]), "{listed}");
    wait_for("three fires", SOON, async || {
        let done = fleet.records("tick").await.into_iter().filter(|record| status(record) == "succeeded");
        (done.count() >= 3).then_some(())
    })
    .await;
    api.done("/job/delete", &json!({"name": "tick"})).await;
    wait_for("the last fires", SOON, async || {
        let records = fleet.records("tick").await;
        let ran = records.iter().filter(|record| status(record) == "succeeded");
        let expected: Vec<String> = ran.map(|record| text(record, "_id").to_owned()).collect();
        let mut keys: Vec<String> =
            came_to("/tick").into_iter().map(|(headers, _)| headers["idempotency-key"].clone()).collect();
        keys.sort_unstable();
        (keys == expected).then_some(())
    })
    .await;

    // Of a retry each attempt has a key of its own, and all have one plan time.
    let post =
        json!({"method": "POST", "url": format!("{url}/shaky"), "body": "{}", "expect": {"body": "done"}});
    let run_id = run(&api, "shaky", post, json!({"retry": {"attempts": 3, "backoff": 0}})).await;
    let record = fleet.record("shaky", |record| status(record) == "succeeded").await;
    assert_eq!((number(&record, "attempt"), number(&record, "httpStatus")), (2, 200), "{record}");
    assert_eq!(text(&record, "output"), "HTTP/1.1 200 OK\ndone\n");
    assert_eq!(text(&record, "command"), format!("POST {url}/shaky"));
    let failed = fleet.record("shaky", |record| status(record) == "failed").await;
    assert_eq!(text(&failed, "err"), "status 503 Service Unavailable, not 2xx");
    let plan_time = number(&record, "planTime");
    let expected = [1, 2].map(|attempt| {
        let id = if attempt == 1 { run_id.clone() } else { format!("{run_id}.{attempt}") };
        let headers = [
            ("idempotency-key", format!("shaky/{plan_time}/{run_id}/{attempt}")),
            ("fleetcron-job", "shaky".to_owned()),
            ("fleetcron-plan-time", plan_time.to_string()),
            ("fleetcron-attempt", attempt.to_string()),
            ("fleetcron-run-id", id),
        ];
        (headers.map(|(name, value)| (name.to_owned(), value)).into(), "{}".to_owned())
    });
    assert_eq!(came_to("/shaky"), expected);

    // Seen while it goes, and killed.
    let run_id = run(&api, "endless", json!({"url": format!("{url}/endless")}), json!({})).await;
    wait_for("what has come of the answer", SOON, async || {
        let (_, reply) = api.get(&format!("/run/output?id={run_id}")).await;
        let output = reply["data"]["output"].as_str()?;
        (output == "HTTP/1.1 200 OK\nbegin\n" && reply["data"]["ended"] == false).then_some(())
    })
    .await;
    api.done("/job/kill", &json!({"name": "endless"})).await;
    let killed = fleet.record("endless", |record| status(record) == "killed").await;
    assert_eq!(
        (text(&killed, "err"), text(&killed, "output")),
        ("request killed", "HTTP/1.1 200 OK\nbegin\n")
    );

    // Not answered in time; led to where nobody may be called; and the metadata of a cloud.
    run(&api, "late", json!({"url": format!("{url}/endless")}), json!({"timeoutSeconds": 1})).await;
    run(&api, "away", json!({"url": format!("{url}/away"), "followRedirects": 1}), json!({})).await;
    run(&api, "metadata", json!({"url": "http://169.254.169.254/latest/meta-data/"}), json!({})).await;
    for (job, ended, err) in [
        ("late", "timedOut", "the answer did not end (timed out after 1 s)"),
        ("away", "failed", "127.0.0.2 is not called: loopback"),
        ("metadata", "failed", "169.254.169.254 is not called: where a cloud tells machines their secrets"),
    ] {
        let record = fleet.record(job, |_| true).await;
        assert_eq!((status(&record), text(&record, "err")), (ended, err));
    }
    let with_env = json!({"name": "away", "env": {"A": "b"}});
    let (code, reply) = api.post("/job/run", &with_env).await;
    assert!(code == 400 && reply["msg"].as_str().unwrap().starts_with("env: means nothing"), "{reply}");
}
