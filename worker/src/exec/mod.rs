//! Running commands.

pub(crate) mod output;
pub(crate) mod process;
