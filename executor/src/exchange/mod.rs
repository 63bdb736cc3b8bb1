//! Outputs of whole stages, on their way to the tasks that read them.
//!
//! ```text
//! durable:       task ─▶ files in the storage ─────────────────────────▶ task
//!                task ─▶ files of the executor ─▶ object store ────────▶ task
//! kept:          task ─▶ files of the executor ─▶ (here, or Flight) ───▶ task
//! stored:                 └──▶ the storage, meanwhile ─ (else) ─────────▶ task
//! ```

mod client;
pub(crate) mod files;
mod messages;
mod places;
mod read;
mod service;
mod store_job;
mod stored;
mod ticket;

pub(crate) use client::FlightClients;
pub use files::ExchangeCompression;
pub(crate) use files::{ExchangeFolder, ExchangeWriter, batch_count, open, read_error};
pub(crate) use places::{ExchangeFile, Keeping, Places, durable_files};
pub(crate) use read::read_files;
pub(crate) use service::serve;
pub use store_job::StoreJob;
pub(crate) use stored::StoredFile;
pub(crate) use ticket::is_inside;
