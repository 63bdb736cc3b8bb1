//! Changes that clients ask for under names of their own: made once, however often they are asked for. The newest 10,000
//! names are known (`Ledger::answered`); those of requests that start runs or backfills are kept with these, for ever
//! (`Ledger::requests`, `BackfillFacts::request_id`).

use weir_ledger::{Command, Rejection, RequestFacts, Requested};

use super::leading::Leading;
use crate::EngineError;
use crate::session::ledger_error;
use crate::store::StoreError;

/// A client's request that changes something.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// `None`: it has no name, and repeating it is the client's own affair.
    id: Option<String>,
    facts: RequestFacts,
}

impl Request {
    /// `id`: empty for none.
    pub(super) fn new(id: &str, method: &str, subject: impl Into<String>) -> Self {
        let (method, subject) = (method.to_owned(), subject.into());
        let id = Some(id.to_owned()).filter(|id| !id.is_empty());
        Self { id, facts: RequestFacts { method, subject } }
    }

    /// A part of a larger one.
    pub(super) fn unnamed() -> Self {
        Self::new("", "", "")
    }

    /// The command with the request's name, so that both are in the ledger or neither.
    fn named(self, epoch: u64, command: Command) -> Command {
        let Some(request_id) = self.id else { return command };
        let command = Some(Box::new(command));
        Command::Requested(Requested { epoch, request_id, facts: self.facts, command })
    }
}

impl Leading {
    /// Whether the request has been answered before. A name that was used for something else is refused.
    pub(super) async fn is_answered(&self, request: &Request) -> Result<bool, EngineError> {
        let Some(id) = &request.id else { return Ok(false) };
        let known = self.with_ledger(|ledger| ledger.answered.get(id).cloned()).await;
        match known {
            None => Ok(false),
            Some(known) if known == request.facts => Ok(true),
            Some(RequestFacts { method, subject }) => {
                let request = id.clone();
                Err(EngineError::Refused(
                    Rejection::RequestUsed { request, method, subject }.to_string(),
                ))
            }
        }
    }

    /// Makes a change, or does nothing if the request has been answered before. Whether anything is different
    /// now. What the facts do not allow comes back as it is.
    pub(super) async fn append_once(
        &self,
        request: Request,
        command: Command,
    ) -> Result<Result<bool, Rejection>, EngineError> {
        match self.store.append(request.named(self.epoch, command)).await {
            Ok(changed) => Ok(Ok(changed)),
            Err(StoreError::Rejected(
                fenced @ (Rejection::OldEpoch { .. } | Rejection::OtherLedger { .. }),
            )) => {
                let error = ledger_error(self.store.path(), &StoreError::Rejected(fenced));
                self.unless_broken(Err(error))
            }
            Err(StoreError::Rejected(rejection)) => Ok(Err(rejection)),
            Err(error) => self.unless_broken(Err(ledger_error(self.store.path(), &error))),
        }
    }
}
