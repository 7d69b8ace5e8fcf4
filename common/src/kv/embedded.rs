//! The store in one SQLite file: etcd's semantics for local-dev and the tests.
