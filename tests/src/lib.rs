//! What the tests share: the exams of the two storage seams, and fleets of real parts.

pub mod account;
pub mod api;
pub mod aws;
pub mod chaos;
pub mod cluster;
pub mod conformance;
pub mod container;
pub mod context;
pub mod dockerfile;
pub mod embedded;
pub mod fixtures;
pub mod function;
pub mod line;
pub mod runtime_api;
pub mod secure_etcd;
pub mod secure_mongo;
pub mod seed;
