//! What the tests share: the exams of the two storage seams, and fleets of real parts.

pub mod aws;
pub mod conformance;
pub mod fixtures;
pub mod function;
pub mod line;
pub mod seed;
