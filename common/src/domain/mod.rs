//! The domain's plain types, parsed at the edge; no I/O. The words are those of ARCHITECTURE.md.

pub mod access;
pub mod after;
pub mod audit;
pub mod broadcast;
pub mod calendars;
pub mod enabling;
pub mod execution;
pub mod http;
pub mod idempotency;
pub mod job;
pub mod kill;
pub mod labelling;
pub mod mark;
pub mod notify;
pub mod options;
pub mod output;
pub mod pause;
pub mod record;
pub mod request;
pub mod retry;
pub mod run;
pub mod settings;
pub mod stored;
pub mod token;
pub mod worker;
