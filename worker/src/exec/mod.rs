//! Running commands.

mod account;
pub(crate) mod gate;
pub(crate) mod output;
pub(crate) mod process;
pub(crate) mod redact;
pub(crate) mod request;
pub(crate) mod secrets;
pub(crate) mod shell;
pub(crate) mod supplies;
pub(crate) mod work;
