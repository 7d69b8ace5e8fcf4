//! What runs need of their worker, whatever they execute.

use std::sync::Arc;

use common::traces::Tracer;

use super::secrets::Secrets;

/// For commands and requests alike.
#[derive(Clone, Debug, Default)]
pub struct Supplies {
    /// What keeps the traces of runs.
    pub tracer: Tracer,
    /// The secrets that jobs may name in the place of values.
    pub secrets: Arc<Secrets>,
}
