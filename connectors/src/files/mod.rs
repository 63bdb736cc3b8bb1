//! Local files as sources: CSV, JSON and Parquet.
//!
//! ```text
//! path ─listing─▶ files ─▶ splits ─▶ blocking reader thread ─stream─▶ SourceBatch
//! ```
//!
//! A split names a file as it was when the run was planned; a file that has changed since is
//! refused, when it is opened and before each batch, because a run would otherwise mix two versions
//! of it. The schema that was
//! inferred at planning travels with the split.

pub mod csv;
pub mod json;
pub mod parquet;

pub(crate) mod columns;
pub(crate) mod compression;
pub(crate) mod listing;
pub(crate) mod opened;
pub(crate) mod split;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
