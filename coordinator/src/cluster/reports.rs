//! Puts what executors report about their tasks into the ledger, and answers once it is there.

use std::sync::Arc;

use weir_executor::{Commit, CommitLogError, ProgressEvent, TaskEnd};
use weir_ledger::SliceAttempt;
use weir_plan::StageOutput;
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::report::Fact;
use weir_proto::internal::to_executor::Message;
use weir_proto::internal::{Answer, Report};

use super::pool::{Assigned, LastReport, Pool};
use super::wire::slice_attempt;
use crate::workers::WorkError;

/// What is to be done about a report.
enum Todo {
    Answer(Box<Message>),
    Append(Append),
    /// The same report is on its way into the ledger already.
    Nothing,
}

struct Append {
    task: Arc<weir_executor::Task>,
    log: Arc<dyn weir_executor::CommitLog>,
}

/// `boot_id` is that of the process which has sent it: numbers mean nothing to another one.
pub(super) fn on_report(pool: &Arc<Pool>, executor: &str, boot_id: &str, report: Report) {
    let Report { number, task, fact } = report;
    let (Some(task), Some(fact)) = (task, fact) else {
        return pool.send(
            executor,
            boot_id,
            answer(number, Outcome::Unavailable, "the report is empty"),
        );
    };
    let key = slice_attempt(task);
    if let Fact::End(json) = &fact {
        // Asked for again, it is of a task that nobody knows any more: that is an answer, too.
        end(pool, executor, &key, json);
        return pool.send(executor, boot_id, answer(number, Outcome::Accepted, ""));
    }
    let todo = pool.state_of(&key, |assigned| {
        if assigned.executor != executor {
            return Todo::Answer(Box::new(fenced(number)));
        }
        if let Some(last) = assigned.last.as_ref().filter(|last| last.number == number) {
            return (last.answer.clone())
                .map_or(Todo::Nothing, |answer| Todo::Answer(Box::new(answer)));
        }
        assigned.last = Some(LastReport { number, answer: None });
        Todo::Append(Append {
            task: Arc::clone(&assigned.task),
            log: Arc::clone(&assigned.context.log),
        })
    });
    match todo.unwrap_or_else(|| Todo::Answer(Box::new(fenced(number)))) {
        Todo::Nothing => {}
        Todo::Answer(message) => pool.send(executor, boot_id, *message),
        Todo::Append(append) => {
            let pool = Arc::clone(pool);
            let (executor, boot_id) = (executor.to_owned(), boot_id.to_owned());
            tokio::spawn(async move {
                let appended = append_fact(append, fact).await;
                let (told, result) = match appended {
                    Ok(told) => (told, Ok(())),
                    Err(error) => (Told::Nothing, Err(error)),
                };
                let message = answered(number, result);
                pool.state_of(&key, |assigned| {
                    note(assigned, told);
                    if let Some(last) = assigned.last.as_mut().filter(|last| last.number == number)
                    {
                        last.answer = Some(message.clone());
                    }
                });
                pool.send(&executor, &boot_id, message);
            });
        }
    }
}

/// What is told of a fact once it is in the ledger.
enum Told {
    Intended { sequence: u64, rows: u64 },
    Done { sequence: u64 },
    Nothing,
}

fn note(assigned: &mut Assigned, told: Told) {
    match told {
        Told::Nothing => {}
        Told::Intended { sequence, rows } => assigned.intended = Some((sequence, rows)),
        Told::Done { sequence } => {
            let rows = assigned.intended.take_if(|(intended, _)| *intended == sequence);
            let StageOutput::Sink { node, .. } = &assigned.task.stage.output else { return };
            // Nobody may be watching.
            let _ = assigned.context.progress.send(ProgressEvent::BatchCommitted {
                run: assigned.task.run.clone(),
                node: node.clone(),
                slice: assigned.task.slice,
                sequence,
                rows: rows.map_or(0, |(_, rows)| rows),
            });
        }
    }
}

async fn append_fact(append: Append, fact: Fact) -> Result<Told, CommitLogError> {
    let Append { task, log } = append;
    match fact {
        Fact::Intent(json) => {
            let commit: Commit = serde_json::from_slice(&json)
                .map_err(|error| CommitLogError::Refused(format!("not a commit: {error}")))?;
            log.intent(&task, &commit).await?;
            let (sequence, rows) = (commit.manifest.sequence, commit.manifest.rows);
            Ok(Told::Intended { sequence, rows })
        }
        Fact::Done(sequence) => {
            log.done(&task, sequence).await?;
            Ok(Told::Done { sequence })
        }
        Fact::End(_) => Ok(Told::Nothing),
    }
}

fn end(pool: &Pool, executor: &str, key: &SliceAttempt, json: &[u8]) {
    let is_its = pool.state_of(key, |assigned| assigned.executor == executor).unwrap_or(false);
    if !is_its {
        return;
    }
    match serde_json::from_slice::<TaskEnd>(json) {
        Ok(ended) => pool.end(key, ended.into_result().map_err(WorkError::Task)),
        Err(error) => {
            tracing::error!(executor, %error, "a task's end cannot be read");
            pool.end(key, Err(WorkError::ExecutorLost(executor.to_owned())));
        }
    }
}

fn answered(number: u64, result: Result<(), CommitLogError>) -> Message {
    match result {
        Ok(()) => answer(number, Outcome::Accepted, ""),
        Err(CommitLogError::Fenced(message)) => answer(number, Outcome::Fenced, &message),
        Err(CommitLogError::Refused(message)) => answer(number, Outcome::Refused, &message),
        Err(CommitLogError::Unavailable(message)) => answer(number, Outcome::Unavailable, &message),
    }
}

fn fenced(number: u64) -> Message {
    answer(number, Outcome::Fenced, "the leader has given this attempt up")
}

fn answer(number: u64, outcome: Outcome, message: &str) -> Message {
    Message::Answer(Answer { number, outcome: outcome.into(), message: message.to_owned() })
}
