//! Outputs of whole stages, on their way to the tasks that read them.
//!
//! ```text
//! durable:       task ─▶ files in the storage ─────────────────────────▶ task
//! kept:          task ─▶ files of the executor ─▶ (here, or Flight) ───▶ task
//! ```

mod client;
pub(crate) mod files;
mod places;
mod service;
mod ticket;

pub(crate) use client::FlightClients;
pub(crate) use files::{ExchangeFolder, ExchangeWriter, batch_count, open, read_error};
#[cfg(test)]
pub(crate) use places::ExchangeFile;
pub(crate) use places::{Keeping, Places, durable_files, read_files};
pub(crate) use service::serve;
pub(crate) use ticket::is_inside;
