//! The rules of the ledger, first one by one, then under random sequences of commands.

mod backfills;
mod clients;
mod copies;
mod forget_runs;
mod lifecycle;
mod outputs;
mod pipelines;
mod properties;
mod queue;
mod support;
