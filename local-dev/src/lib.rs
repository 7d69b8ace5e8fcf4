//! What the `local-dev` program is made of; the end-to-end tests use its native stack too.

pub mod api_server;
pub mod check_seed;
pub mod crontabs;
mod guests;
pub mod listening;
pub mod native;
pub mod samples;
pub mod stop;
pub mod tls;
