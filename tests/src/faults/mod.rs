//! Faults for a cluster of real processes, and what must hold after each of them (decision 0015).
//!
//! ```text
//! Observer ──▶ Seen, Member … ─┐
//! targets  ──▶ Rows, Booked   ─┴▶ checkers: plain functions of what was observed
//! ```
//!
//! A checker that cannot fail proves nothing: each is also given a history that is wrong in one place.

pub mod history;
pub mod observer;
pub mod rows;
pub mod work;

#[cfg(test)]
mod doctored;
