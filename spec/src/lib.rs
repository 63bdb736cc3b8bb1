//! The pipeline file: parse, validate, explain.
//!
//! `parse` turns the text of one YAML file into a [`PipelineSpec`] or into *all* of its mistakes,
//! each a [`Diagnostic`] with line, column and a remedy. First step of the way of the data:
//!
//! ```text
//! pipeline.yaml ─spec─▶ PipelineSpec ─plan─▶ StageGraph ─▶ tasks
//! ```
//!
//! Inside: `syntax` (text → tree with places), `shape` (the keys of the language as data, the check
//! against them, the JSON Schema), `decode` (tree → model), `check` (what only the whole file can
//! tell: references, cycles, columns, templates).
//!
//! Deliberately unknown here: files, networks, clocks, Arrow, DataFusion. Nothing in this crate does
//! I/O; reading the file and resolving `env` and `secret` is the caller's work.

mod calendar;
mod check;
mod decode;
mod diagnostic;
mod shape;
mod sql;
mod syntax;
mod windows;

pub mod model;
pub mod template;

pub use decode::{Parsed, SharedConnections, parse, parse_with, parse_workspace};
pub use diagnostic::{Diagnostic, Severity, render_diagnostics};
pub use model::*;
pub use shape::schema::json_schema;
pub use windows::{Step, WINDOWS_END, Windows, WindowsError};
