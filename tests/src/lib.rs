//! What the tests share.

pub mod conformance;
pub mod etcd_server;
