//! Running commands.

pub(crate) mod gate;
pub(crate) mod output;
pub(crate) mod process;
pub(crate) mod work;
