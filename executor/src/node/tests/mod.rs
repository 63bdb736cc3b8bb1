//! The executor's process against a leader that does what the test wants.

mod computing;
mod leader;
mod runs;
mod serving;
mod state;
mod storing;
