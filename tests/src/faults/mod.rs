//! Faults for a cluster of real processes, and what must hold after each of them (decision 0015).
//!
//! ```text
//! schedule ─▶ Fault ─▶ Machines: Network (namespaces or loopback), proxies, disks, clocks
//!
//! Observer ──▶ Seen, Member … ─┐
//! targets  ──▶ Rows, Booked   ─┴▶ checkers (rows, work, history): plain functions of what was observed
//! ```
//!
//! A checker that cannot fail proves nothing: each is also given a history that is wrong in one place.

pub mod disks;
pub mod history;
pub mod loopback;
pub mod machines;
pub mod namespaces;
pub mod network;
pub mod observer;
pub mod proxy;
pub mod rows;
pub mod schedule;
pub mod work;

#[cfg(test)]
mod doctored;
