//! Tasks against systems that live in memory and fail on demand.

mod exchange;
pub(crate) mod fakes;
mod flight;
mod paused;
mod streaming;
mod whole;
