//! stub
use super::*;
pub(super) fn next_after(_parts: &[cron::Schedule], _t: Timestamp) -> Option<Timestamp> {
    None
}
pub(super) fn fires_between(_s: &Schedule, _a: Timestamp, _u: Timestamp, _m: u64) -> Option<Fires> {
    None
}
