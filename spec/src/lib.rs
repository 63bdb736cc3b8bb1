//! The pipeline file: parse, validate, explain.
//!
//! `parse` turns the text of one YAML file into a [`PipelineSpec`] or into *all* of its mistakes,
//! each a [`Diagnostic`] with line, column and a remedy. First step of the way of the data:
//!
//! ```text
//! pipeline.yaml ─spec─▶ PipelineSpec ─plan─▶ StageGraph ─▶ tasks
//! ```
//!
//! Deliberately unknown here: files, networks, clocks, Arrow, DataFusion. Nothing in this crate does
//! I/O; reading the file and resolving `env` and `secret` is the caller's work.

pub mod model;
pub mod template;

pub use model::*;
