//! Traces from the call of the API to the run: a real function, a real worker, and what takes their spans as a collector would.
//!
//! Without etcd and a MongoDB-protocol server each test says SKIPPED; `cargo run -p tests` provisions them.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use local_dev::native::process::get;
use serde_json::{Value, json};
use tests::fixtures::{Fleet, SOON, status, wait_for};
use tests::runtime_api::{RuntimeApi, event, start_function};
use tokio::net::TcpListener;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const WAITED_FOR: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "b7ad6b7169203331";

/// Takes spans, while it does.
#[derive(Default)]
struct Collector {
    spans: Mutex<Vec<Value>>,
    refuses: AtomicBool,
}

impl Collector {
    async fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let collector = Arc::<Self>::default();
        let taking = async |State(collector): State<Arc<Self>>, headers: HeaderMap, body: String| {
            if collector.refuses.load(Relaxed) {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            assert_eq!(headers["content-type"], "application/json");
            assert_eq!(headers["api-key"], "hunter2");
            let body: Value = serde_json::from_str(&body).unwrap();
            let resource = &body["resourceSpans"][0];
            let service = &resource["resource"]["attributes"][0]["value"]["stringValue"];
            let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap().iter().cloned();
            let named = spans.map(|mut span| {
                span["service"] = service.clone();
                span
            });
            collector.spans.lock().unwrap().extend(named);
            StatusCode::OK
        };
        let app = axum::Router::new().route("/v1/traces", post(taking)).with_state(Arc::clone(&collector));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (collector, url)
    }

    /// The spans of a trace that a service has sent.
    fn of(&self, trace: &str, service: &str) -> Vec<Value> {
        let spans = self.spans.lock().unwrap();
        spans.iter().filter(|span| span["traceId"] == trace && span["service"] == service).cloned().collect()
    }
}

/// What a span says under this name.
fn said<'a>(span: &'a Value, key: &str) -> &'a Value {
    let attributes = span["attributes"].as_array().unwrap();
    let attribute = attributes.iter().find(|attribute| attribute["key"] == key);
    &attribute.unwrap_or_else(|| panic!("{key} is not in {span}"))["value"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_leads_from_the_call_to_the_command_and_no_run_waits_for_it() {
    let Some(mut fleet) = Fleet::start("traces").await else { return };
    let (collector, url) = Collector::start().await;
    let traces =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2")];
    let listen = fleet.worker("w1", &traces).await.listen();
    let api = RuntimeApi::start().await;
    let etcd = fleet.etcd.url();
    let of_function = [traces[0], traces[1], ("CRON_ETCD_ENDPOINTS", etcd.as_str())];
    let _function = start_function(&fleet.site, "run", &api, &of_function).await;
    let command = "echo \"$TRACEPARENT ${OTEL_EXPORTER_OTLP_HEADERS-private}\"";
    fleet.put_job("asked", command, "0 0 1 1 *").await;
    let call = async |trace: &str| {
        let traceparent = format!("00-{trace}-{CALLER}-01");
        let headers = [("content-type", "application/json"), ("traceparent", traceparent.as_str())];
        let event = event("POST", "/job/run", &headers, &json!({"name": "asked"}).to_string());
        let answer = api.invoke(event.to_string()).await;
        assert_eq!(answer.status(), 200, "{}", answer.envelope());
        answer.envelope()["data"]["runId"].as_str().unwrap().to_owned()
    };

    let run_id = call(TRACE).await;
    let [of_call] = wait_for("the function's span", SOON, async || {
        <[Value; 1]>::try_from(collector.of(TRACE, "fleetcron-run")).ok()
    })
    .await;
    assert_eq!((&of_call["name"], &of_call["kind"]), (&json!("POST /job/run"), &json!(2)), "{of_call}");
    assert_eq!(of_call["parentSpanId"], CALLER);
    let record =
        fleet.record("asked", |record| record.get_str("claim").is_ok_and(|claim| claim == run_id)).await;
    let [of_run] = wait_for("the worker's span", SOON, async || {
        <[Value; 1]>::try_from(collector.of(TRACE, "fleetcron-worker")).ok()
    })
    .await;
    assert_eq!(of_run["parentSpanId"], of_call["spanId"], "{of_run}");
    assert_eq!(said(&of_run, "fleetcron.run_id")["stringValue"], run_id);
    assert_eq!(said(&of_run, "fleetcron.status")["stringValue"], "succeeded");
    assert_eq!(said(&of_run, "fleetcron.attempt")["intValue"], "1");
    let handed = format!("00-{TRACE}-{}-01 private\n", of_run["spanId"].as_str().unwrap());
    let told = (record.get_str("output").unwrap(), record.get_str("traceId").unwrap());
    assert_eq!(told, (handed.as_str(), TRACE));

    // A function that has answered is frozen: its span has gone before. It waits for that a moment only, which one call on a busy machine may
    // exceed, and not each of many.
    let mut calls = 0;
    loop {
        calls += 1;
        assert!(calls < 50, "no call's span has gone before its answer");
        call(WAITED_FOR).await;
        if collector.of(WAITED_FOR, "fleetcron-run").len() == calls {
            break;
        }
    }

    // A fire of the schedule begins a trace of its own, which its record names.
    fleet.put_job("fires", command, "* * * * * * *").await;
    let record = fleet.record("fires", |_| true).await;
    let trace = record.get_str("traceId").unwrap();
    assert!(record.get_str("output").unwrap().starts_with(&format!("00-{trace}-")), "{record}");
    let of_fire = wait_for("the span of a fire", SOON, async || {
        collector.of(trace, "fleetcron-worker").into_iter().next()
    })
    .await;
    assert_eq!((&of_fire["parentSpanId"], &of_fire["kind"]), (&Value::Null, &json!(1)), "{of_fire}");
    fleet.delete_prefix("/cron/jobs/fires").await;

    // Nobody takes spans any more: calls are answered, runs run, and what is given up is counted.
    collector.refuses.store(true, Relaxed);
    let run_id = call(TRACE).await;
    let record =
        fleet.record("asked", |record| record.get_str("claim").is_ok_and(|claim| claim == run_id)).await;
    assert_eq!(status(&record), "succeeded");
    let count = async |name: &str| {
        let (_, metrics) = get(listen, "/metrics").await?;
        metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    assert!(count("fleetcron_trace_spans_exported_total ").await.unwrap() >= 2);
    wait_for("spans to be given up", SOON, async || {
        count("fleetcron_trace_spans_dropped_total ").await.filter(|dropped| *dropped > 0)
    })
    .await;
}
