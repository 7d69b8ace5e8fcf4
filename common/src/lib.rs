//! What the functions, the workers and local-dev share: the domain, the schedules, and the two storage seams
//! ([`kv::Kv`] for what must be agreed upon, [`run_log::RunLog`] for the records) with their implementations.

pub mod api;
pub mod causes;
pub mod certificates;
pub mod channels;
pub mod clock;
pub mod config;
pub mod crontab;
pub mod domain;
pub mod history;
pub mod https;
pub mod ids;
pub mod job_secrets;
pub mod keys;
pub mod kv;
pub mod logging;
pub mod networks;
pub mod run_log;
pub mod schedule;
pub mod secrets;
pub mod shortened;
pub mod stores;
pub mod traces;
