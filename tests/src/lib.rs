//! What the tests share: the exams of the two storage seams, servers on loopback, and fleets of real parts.

pub mod conformance;
pub mod etcd_server;
pub mod fixtures;
pub mod mongo_server;
pub mod seed;
