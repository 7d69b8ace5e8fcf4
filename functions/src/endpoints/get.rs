//! `GET /run/get`: one run, open or ended.

use common::kv::Kv;
use common::run_log::RunLog;
use lambda_http::Request;
use serde_json::json;

use super::runs::{self, Run};
use super::{Warnings, log};
use crate::http::{Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["id"];

/// Serves `GET /run/get`.
pub async fn handle(kv: &dyn Kv, run_log: &dyn RunLog, request: Request) -> Response {
    answer(METHODS, request, async |call| get(kv, run_log, &call).await).await
}

async fn get(kv: &dyn Kv, run_log: &dyn RunLog, call: &Call) -> Result<Reply, Refusal> {
    let query = call.query()?;
    let mut warnings = Warnings::default();
    for warning in query.warnings(PARAMETERS) {
        warnings.push(warning);
    }
    let data = match runs::find(kv, run_log, runs::id(&query)?, call.principal()).await? {
        Run::Open(open, _key) => json!({ "open": open, "record": null }),
        Run::Ended(record) => {
            let record = log::fitted(*record, &mut warnings).map(|(record, _bytes)| record);
            json!({ "open": null, "record": record })
        }
    };
    Ok(Reply::new(data, warnings.finish()))
}
