//! From a pipeline to the stages that run it: DataFusion planning, our operators, the plan codec.
//!
//! ```text
//! PipelineSpec + Catalog ─plan─▶ StageGraph (frozen, encoded) ─▶ ledger, executors
//! ```
//!
//! Deterministic: the same spec and the same catalog give the same bytes. Deliberately no I/O:
//! whoever calls `plan` has asked the sources for their descriptions and splits before
//! ([`Catalog`]), and whoever executes an operator provides its data ([`TaskServices`]).

mod analysis;
pub mod catalog;
pub mod codec;
mod collect;
mod conditions;
pub mod cursor;
mod distribute;
pub mod error;
mod logical;
mod names;
pub mod operators;
mod planner;
pub mod progress;
mod pushdown;
pub mod render;
mod row_accounts;
mod row_wise;
mod schema;
pub mod services;
pub mod session;
mod slices;
pub mod stage;
mod tables;
mod template;
pub mod testing;
mod union;
pub mod whole_slice;
mod workspace;

pub use catalog::{Catalog, CatalogSource, PlanScope};
pub use codec::{decode_plan, encode_plan};
pub use cursor::{compare_cursors, is_later_cursor};
pub use error::PlanError;
pub use planner::{plan, plan_node};
pub use progress::{
    Commit, ExchangeOutput, Holder, InStorage, RowAccount, SlicePosition, SliceStart,
};
pub use render::render;
pub use services::{NodeCounts, Rejection, TaskExtension, TaskServices};
pub use stage::{
    EncodedPlan, EncodedSchema, Slice, Stage, StageGraph, StageId, StageKind, StageOutput,
    StreamInput,
};
pub use template::template_values;
pub use whole_slice::{SliceRows, execute_slice};

#[cfg(test)]
mod tests;
