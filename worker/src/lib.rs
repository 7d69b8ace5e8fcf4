//! The worker: claims fires in the store, runs them, writes their records. A library, since local-dev and the tests run
//! it in their own process too.

mod audit;
mod batches;
mod certificates;
mod claims;
mod clocks;
pub mod data_dir;
mod driver;
mod exec;
mod exposition;
mod fleet_settings;
mod follow;
pub mod guardian;
pub mod health;
mod histogram;
pub mod history;
pub mod identity;
mod lead;
mod live;
mod notify;
mod outbound;
mod pace;
pub mod private;
mod process_figures;
pub mod retention;
mod retries;
mod rights;
pub mod scheduler;
mod seen;
mod session;
mod sink;
mod spool;
pub mod status;
mod sweep;
mod timed;
mod traces;
mod turns;
mod upkeep;
mod waiting;
mod watches;
mod witness;

pub use driver::{LAST_RECORDS_MAX, LoopBroke, Options, Ports, Worker};
pub use exec::secrets::Secrets;
pub use exec::shell::Shell;
pub use exec::supplies::Supplies;
pub use exec::work::{Kill, Work};
pub use outbound::Outbound;

#[cfg(test)]
mod after_tests;
#[cfg(test)]
mod gate_tests;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod sink_tests;
#[cfg(test)]
mod store_tests;
