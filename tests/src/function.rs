//! A function's real program with a Runtime API of its own: one call at a time, whenever the test says.

use local_dev::native::process::Process;
use local_dev::native::servers::Site;
use serde_json::Value;

use crate::fixtures::{SOON, wait_for};
use crate::runtime_api::{RuntimeApi, event, start_function};

/// A function in a process of its own.
pub struct Function {
    process: Process,
    api: RuntimeApi,
}

impl Function {
    /// Starts the function called `name` with these variables; returns when it has asked for its first event.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(site: &Site, name: &str, environment: &[(&str, &str)]) -> Self {
        let api = RuntimeApi::start().await;
        let process = start_function(site, name, &api, environment).await;
        wait_for("the question for an event", SOON, async || (api.asked() > 0).then_some(())).await;
        Self { process, api }
    }

    /// Invokes it: status and body of its answer.
    ///
    /// # Panics
    /// When none comes.
    pub async fn call(&self, method: &str, target: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let event = event(method, target, &[("content-type", "application/json")], &body);
        let answer = self.api.invoke(event.to_string()).await;
        (u16::try_from(answer.status()).unwrap(), answer.envelope())
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.process.log()).unwrap()).into_owned()
    }
}
