//! Every answer of every route has the headers that keep browsers from misusing it, and none that would let other origins in.

use std::sync::Arc;

use common::clock::SystemClock;
use common::kv::embedded::EmbeddedKv;
use common::run_log::embedded::EmbeddedRunLog;
use functions::invocation::Invocation;
use functions::{Ports, ROUTES, handle};
use lambda_http::http::HeaderMap;
use lambda_http::{Body, RequestExt as _};

fn ports() -> Ports {
    Ports {
        kv: Arc::new(EmbeddedKv::in_memory().unwrap()),
        run_log: Arc::new(EmbeddedRunLog::in_memory().unwrap()),
        clock: Arc::new(SystemClock),
    }
}

/// What a page of another origin gets when it asks.
async fn answer(ports: &Ports, method: &str, path: &str) -> (u16, HeaderMap) {
    let request = lambda_http::http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("origin", "https://evil.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization")
        .body(Body::Empty)
        .unwrap()
        .with_raw_http_path(path);
    let response = Invocation::of_local(&request).observe(handle(ports, request)).await;
    (response.status().as_u16(), response.headers().clone())
}

#[tokio::test]
async fn every_answer_keeps_browsers_from_misusing_it() {
    let ports = ports();
    let paths = ROUTES.iter().map(|route| route.path.replace("{file}", "app.js"));
    let mut statuses = std::collections::BTreeSet::new();
    for path in paths.chain(["/nothing".to_owned(), "/console/nothing.js".to_owned()]) {
        for method in ["GET", "HEAD", "POST", "OPTIONS", "PUT"] {
            let (status, headers) = answer(&ports, method, &path).await;
            let told = format!("{method} {path}: {status} {headers:?}");
            statuses.insert(status);
            let value = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap());
            let file = path == "/" || path.starts_with("/console/");
            let served = file && matches!(method, "GET" | "HEAD") && status == 200;
            assert_eq!(value("cache-control"), if served { "no-cache" } else { "no-store" }, "{told}");
            assert_eq!(value("x-content-type-options"), "nosniff", "{told}");
            assert_eq!(value("referrer-policy"), "no-referrer", "{told}");
            assert_eq!(value("cross-origin-resource-policy"), "same-origin", "{told}");
            assert_eq!(value("cross-origin-opener-policy"), "same-origin", "{told}");
            let policy = value("content-security-policy");
            assert!(
                policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
                "{told}"
            );
            assert!(!policy.contains("unsafe") && !policy.contains("http"), "{told}");
            let lets_in = |name: &str| name.starts_with("access-control-") || name == "set-cookie";
            assert!(!headers.keys().any(|name| lets_in(name.as_str())), "{told}");
            assert!(method != "OPTIONS" || status >= 400, "{told}");
        }
    }
    assert!(statuses.contains(&200) && statuses.contains(&404) && statuses.contains(&405), "{statuses:?}");
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing() {
    let ports = ports();
    for route in ROUTES.iter().filter(|route| route.methods.contains(&"POST")) {
        let (status, _) = answer(&ports, "POST", route.path).await;
        assert_eq!(status, 403, "{}", route.path);
    }
}
