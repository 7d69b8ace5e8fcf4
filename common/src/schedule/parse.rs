//! stub
/// Error
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// m
    pub message: String,
}
pub(super) fn parse(e: &str) -> Result<super::Schedule, Error> {
    let _ = e;
    Err(Error { message: "stub".into() })
}
