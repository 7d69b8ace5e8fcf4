//! What the tests share: the exams of the two storage seams, and servers on loopback.

pub mod conformance;
pub mod mongo_server;
