//! All integration tests, in one binary: each file a subject.

mod bad_data;
mod disk_full;
mod examples;
mod kill;
mod layering;
mod secrets;
mod sessions;
mod targets;
