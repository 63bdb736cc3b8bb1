//! Harness of the integration tests: real servers, the real binary, known data.
//!
//! The tests themselves are in `tests/it/`, one file a subject, one binary for all.

pub mod authority;
pub mod cluster;
pub mod dataset;
pub mod faults;
pub mod foreign;
pub mod moments;
pub mod postgres;
#[cfg(test)]
mod postgres_sink;
#[cfg(test)]
mod postgres_source;
pub mod rest_server;
#[cfg(test)]
mod rest_source;
pub mod s3;
pub mod weir;
