//! Fleetcron in one process: the API server for those who have no Lambda.

pub mod api_server;
