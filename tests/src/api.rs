//! The API's handlers in a test's own process, over the stores of its fleet: no gateway, no tokens.

use std::sync::Arc;
use std::time::Duration;

use common::clock::SystemClock;
use common::config::EtcdSettings;
use common::domain::access::Principal;
use common::kv::etcd::EtcdKv;
use common::run_log::mongo::MongoRunLog;
use functions::Ports;
use lambda_http::http::Request;
use lambda_http::{Body, RequestExt as _};
use serde_json::Value;

use crate::fixtures::Fleet;

/// What a test waits for a store that is away.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// The API, asked by anybody (the rights of an admin).
pub struct Api(Ports);

impl Api {
    /// Over the stores of this fleet.
    ///
    /// # Panics
    /// When their addresses are none.
    #[must_use]
    pub fn of(fleet: &Fleet) -> Self {
        let etcd = EtcdSettings { endpoints: Some(vec![fleet.etcd.url()]), ..EtcdSettings::default() };
        Self(Ports {
            kv: Arc::new(EtcdKv::new(&etcd, CALL_LIMIT).unwrap()),
            run_log: Arc::new(MongoRunLog::new(&fleet.mongo.url(), CALL_LIMIT).unwrap()),
            clock: Arc::new(SystemClock),
        })
    }

    /// The status and the answer to a request; a `body` of `Null` sends none.
    ///
    /// # Panics
    /// When the answer is not JSON.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path).extension(Principal::anybody());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Body::Empty } else { Body::Text(body.to_string()) };
        let request = request.header("content-type", "application/json").body(body).unwrap();
        let raw = request.uri().path().to_owned();
        let response = functions::handle(&self.0, request.with_raw_http_path(raw)).await;
        let Body::Text(text) = response.body() else { panic!("{method} {path}: no text") };
        (response.status().as_u16(), serde_json::from_str(text).unwrap())
    }

    /// The status and the answer to a `GET`.
    ///
    /// # Panics
    /// When the answer is not JSON.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.call("GET", path, &[], &Value::Null).await
    }

    /// The status and the answer to a `POST`.
    ///
    /// # Panics
    /// When the answer is not JSON.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call("POST", path, &[], body).await
    }

    /// The `data` of a `POST`'s answer.
    ///
    /// # Panics
    /// When it does not succeed.
    pub async fn done(&self, path: &str, body: &Value) -> Value {
        let (status, mut reply) = self.post(path, body).await;
        assert_eq!(status, 200, "{path} {body}: {reply}");
        reply["data"].take()
    }
}
