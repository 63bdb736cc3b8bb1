//! Outputs of whole stages, on their way to the tasks that read them.
//!
//! ```text
//! durable:       task ─▶ files in the storage ─────────────────────────▶ task
//!                task ─▶ files of the executor ─▶ object store ────────▶ task
//! kept:          task ─▶ files of the executor ─▶ (here, or Flight) ───▶ task
//! ```

mod client;
pub(crate) mod files;
mod messages;
mod places;
mod service;
mod stored;
mod ticket;

pub(crate) use client::FlightClients;
pub use files::ExchangeCompression;
pub(crate) use files::{ExchangeFolder, ExchangeWriter, batch_count, open, read_error};
pub(crate) use places::{ExchangeFile, Keeping, Places, durable_files, read_files};
pub(crate) use service::serve;
pub(crate) use stored::StoredFile;
pub(crate) use ticket::is_inside;
