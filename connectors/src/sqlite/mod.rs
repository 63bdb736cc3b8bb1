//! SQLite databases, as sources and sinks.
//!
//! ```text
//! sink    rows ─▶ spill file (Arrow IPC, beside the database)
//!                   ▼ publish: one transaction { fence, rows, row of `_weir_ledger` }
//!                 table (commit: batch) or staging table (commit: run)
//!                   ▼ commit_run: one transaction { fence, merge or swap, `_weir_ledger` }
//!                 table
//! source  table ─▶ splits of rowid ranges ─▶ pages `rowid > ? ORDER BY rowid LIMIT ?`
//! ```
//!
//! SQLite has one writer at a time. A batch is therefore collected in a file and written in one
//! short transaction, and writers of this process queue for it (`connect::WRITERS`) instead of
//! polling the database's lock. The database is put into WAL mode, so that readers are not blocked.
//!
//! Types are described in the module `types`.

mod commit;
mod connect;
mod convert;
mod cursor;
mod insert;
mod read;
mod sink;
mod source;
#[cfg(test)]
mod source_tests;
mod spill;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod writer;

pub(crate) use sink::open_sink;
pub(crate) use source::open_source;
