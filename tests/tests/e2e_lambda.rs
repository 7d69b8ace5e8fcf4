//! The functions as Lambda runs them: real processes on a Runtime API and real stores.

use serde_json::json;
use tests::fixtures::{TestDir, guard};
use tests::runtime_api::{Function, RuntimeApi, event};

#[tokio::test]
async fn a_function_without_stores_answers_event_after_event() {
    let dir = TestDir::new("lambda-console");
    let api = RuntimeApi::start().await;
    let log = dir.path().join("console.log");
    let _function = Function::start("console", &api, &log, guard().as_ref(), &[]).await;
    for _ in 0..2 {
        let page = api.invoke(event("GET", "/", &[], "").to_string()).await;
        assert_eq!((page.failed, page.status()), (false, 200), "{}", page.posted());
    }
    let wrong = api.invoke(event("POST", "/", &[], "").to_string()).await;
    assert_eq!((wrong.status(), &wrong.envelope()["errno"]), (405, &json!(-1)));
}
