//! Tasks against systems that live in memory and fail on demand.

mod exchange;
mod fakes;
mod streaming;
mod whole;
