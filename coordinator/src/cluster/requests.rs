//! Changes that clients ask for under names of their own: made once, however often they are asked for. The newest 10,000
//! names are known (`Ledger::answered`); those of requests that start runs or backfills as long as the ledger has
//! these (`Ledger::requests`, `BackfillFacts::request_id`).

use weir_ledger::{Command, Ledger, Rejection, RequestFacts, Requested};

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
    pub(super) fn named(self, epoch: u64, command: Command) -> Command {
        let Some(request_id) = self.id else { return command };
        let command = Some(Box::new(command));
        Command::Requested(Requested { epoch, request_id, facts: self.facts, command })
    }
}

impl Leading {
    /// Whether the request has been answered before. A name that was used for something else is refused.
    pub(super) async fn is_answered(&self, request: &Request) -> Result<bool, EngineError> {
        let Some(id) = &request.id else { return Ok(false) };
        let known = self.with_ledger(|ledger| used_for(ledger, id, &request.facts)).await;
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

    /// Keeps the name of a request that has been carried out by other commands.
    pub(super) async fn note(&self, request: Request) -> Result<(), EngineError> {
        let Some(request_id) = request.id else { return Ok(()) };
        let (epoch, facts) = (self.epoch, request.facts);
        let noted = Requested { epoch, request_id, facts, command: None };
        self.append(Command::Requested(noted)).await
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

/// What a name was used for. That of a registration is also that of the run which the same command starts.
fn used_for(ledger: &Ledger, id: &str, wanted: &RequestFacts) -> Option<RequestFacts> {
    if let Some(known) = ledger.answered.get(id) {
        return Some(known.clone());
    }
    if !wanted.method.starts_with("Runs/") && !wanted.method.starts_with("Backfills/") {
        return None;
    }
    let begun = |method: &str, subject: &str| RequestFacts {
        method: method.to_owned(),
        subject: subject.to_owned(),
    };
    let run = ledger.run_of_request(id).map(|run| begun("Runs/Submit", &run.0));
    run.or_else(|| Some(begun("Backfills/Create", &ledger.backfill_of_request(id)?.0)))
}
