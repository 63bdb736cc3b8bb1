//! The one way in which the ledger changes.

use crate::commands::Command;
use crate::{Ledger, Rejection};

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The fact holds now. `changed: false`: it was known before (a repetition, or a later result
    /// of a slice whose first result has won); such a command need not be kept.
    Accepted { changed: bool },
    /// Nothing has changed.
    Rejected(Rejection),
}

/// Applies a command as entry `index` of the log. Indexes grow; which ones are left out does not
/// matter. A rejected command leaves the ledger exactly as it was.
pub fn apply(ledger: &mut Ledger, index: u64, command: &Command) -> Response {
    match carry_out(ledger, index, command) {
        Ok(changed) => {
            if changed {
                ledger.last_index = index;
            }
            Response::Accepted { changed }
        }
        Err(rejection) => Response::Rejected(rejection),
    }
}

/// Whether it has changed anything.
fn carry_out(ledger: &mut Ledger, index: u64, command: &Command) -> Result<bool, Rejection> {
    check_epoch(ledger, command)?;
    match command {
        Command::NewEpoch(command) => command.apply(ledger, index),
        Command::StartRun(command) => command.apply(ledger),
        Command::PlanRun(command) => command.apply(ledger),
        Command::PrepareSink(command) => command.apply(ledger),
        Command::StartAttempt(command) => command.apply(ledger),
        Command::StartCopy(command) => command.apply(ledger),
        Command::CommitIntent(command) => command.apply(ledger),
        Command::CommitDone(command) => command.apply(ledger),
        Command::CommitLost(command) => command.apply(ledger),
        Command::FinishExchange(command) => command.apply(ledger),
        Command::FailAttempt(command) => command.apply(ledger),
        Command::LoseAttempt(command) => command.apply(ledger),
        Command::LoseOutputs(command) => command.apply(ledger),
        Command::OutputStored(command) => command.apply(ledger),
        Command::RunCommitIntent(command) => command.apply(ledger),
        Command::RunCommitDone(command) => command.apply(ledger),
        Command::FinishRun(command) => command.apply(ledger),
        Command::ResumeRun(command) => command.apply(ledger),
        Command::JoinRun(command) => command.apply(ledger),
        Command::CleanUpDone(command) => command.apply(ledger),
        Command::SetWatermark(command) => command.apply(ledger),
        Command::ResetWatermark(command) => command.apply(ledger),
        Command::CreateToken(command) => command.apply(ledger),
        Command::RevokeToken(command) => command.apply(ledger),
        Command::CreateBackfill(command) => command.apply(ledger),
        Command::ChangeBackfill(command) => command.apply(ledger),
        Command::SetDraining(command) => command.apply(ledger),
        Command::NoteClientChange(command) => command.apply(ledger),
        Command::RegisterPipeline(command) => command.apply(ledger),
        Command::DeletePipeline(command) => command.apply(ledger),
        Command::QueueRun(command) => command.apply(ledger),
        Command::BeginRun(command) => command.apply(ledger),
        Command::SkipRun(command) => command.apply(ledger),
        Command::ForgetRuns(command) => command.apply(ledger),
        Command::Requested(requested) => {
            if requested.is_known(ledger)? {
                return Ok(false);
            }
            if let Some(command) = &requested.command {
                carry_out(ledger, index, command)?;
            }
            requested.note(ledger);
            Ok(true)
        }
    }
}

/// Only the owner of the current epoch may write.
fn check_epoch(ledger: &Ledger, command: &Command) -> Result<(), Rejection> {
    let current = ledger.current_epoch();
    match command.epoch() {
        Some(given) if given != current => Err(Rejection::OldEpoch { given, current }),
        Some(_) | None => Ok(()),
    }
}
