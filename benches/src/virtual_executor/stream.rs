//! One executor's stream to the leader.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use weir_plan::StageGraph;
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::executors_client::ExecutorsClient;
use weir_proto::internal::from_executor::Message;
use weir_proto::internal::report::Fact;
use weir_proto::internal::{
    Assign, FromExecutor, Heartbeat, Hello, Report, TaskId, ToExecutor, to_executor,
};

use crate::Failure;
use crate::figures::Seen;

const BETWEEN_BEATS: Duration = Duration::from_millis(500);
const MAX_MESSAGE_BYTES: usize = 64 << 20;

type Incoming = tonic::Streaming<ToExecutor>;

async fn join(
    url: &str,
    name: &str,
    slots: u32,
) -> Result<(UnboundedSender<FromExecutor>, Incoming), Failure> {
    let channel = tonic::transport::Endpoint::from_shared(url.to_owned())?
        .tcp_nodelay(true)
        .connect()
        .await?;
    let (sender, receiver) = unbounded_channel();
    let hello = Hello {
        executor: name.to_owned(),
        boot_id: format!("{:?}", Instant::now()),
        engine_version: StageGraph::ENGINE_VERSION.to_owned(),
        slots,
        memory_bytes: 0,
        host: "here".to_owned(),
        pid: std::process::id(),
    };
    sender.send(FromExecutor { message: Some(Message::Hello(hello)) })?;
    let mut client = ExecutorsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let answer = client.work(UnboundedReceiverStream::new(receiver)).await?;
    Ok((sender, answer.into_inner()))
}

fn beat(sender: UnboundedSender<FromExecutor>, draining: bool) {
    tokio::spawn(async move {
        let beat = Message::Heartbeat(Heartbeat { draining });
        while sender.send(FromExecutor { message: Some(beat.clone()) }).is_ok() {
            tokio::time::sleep(BETWEEN_BEATS).await;
        }
    });
}

/// An executor with many places, in which nothing is ever done.
pub(crate) struct Planner {
    leader: String,
    sender: UnboundedSender<FromExecutor>,
}

impl Planner {
    pub(crate) async fn join(url: &str, slots: u32) -> Result<Self, Failure> {
        let (sender, mut incoming) = join(url, "planner", slots).await?;
        incoming.message().await?.ok_or("no welcome")?;
        tokio::spawn(hand_back(incoming, sender.clone()));
        Ok(Self { leader: url.to_owned(), sender })
    }

    pub(crate) fn leader(&self) -> &str {
        &self.leader
    }

    /// The run's slices are counted already. It may be planned before the leader hears this.
    pub(crate) fn take_no_tasks(&self) -> Result<(), Failure> {
        let beat_now = Message::Heartbeat(Heartbeat { draining: true });
        self.sender.send(FromExecutor { message: Some(beat_now) })?;
        beat(self.sender.clone(), true);
        Ok(())
    }
}

/// Tasks that come all the same are stopped at once, as by an executor that leaves, so that others get them.
async fn hand_back(
    mut incoming: Incoming,
    sender: UnboundedSender<FromExecutor>,
) -> Result<(), Failure> {
    let mut number = 0;
    while let Some(message) = incoming.message().await? {
        if let Some(to_executor::Message::Assign(assign)) = message.message {
            number += 1;
            let end = Fact::End(serde_json::to_vec("stopped")?);
            let report = Report { number, task: assign.task, fact: Some(end) };
            sender.send(FromExecutor { message: Some(Message::Report(report)) })?;
        }
    }
    Ok(())
}

pub(crate) struct Executor {
    sender: UnboundedSender<FromExecutor>,
    incoming: Incoming,
    hold: Duration,
    /// In the order in which their time comes.
    held: VecDeque<(Instant, TaskId)>,
    /// Since when places are free that have had a task.
    free: VecDeque<Instant>,
    /// Places that have had no task yet.
    fresh: u32,
    /// What is waited for, by the number of its report.
    reports: HashMap<u64, Waiting>,
    number: u64,
}

struct Waiting {
    task: TaskId,
    since: Instant,
    step: Step,
}

enum Step {
    Intent,
    Done,
    End,
}

impl Executor {
    pub(crate) async fn join(
        leader: &str,
        name: &str,
        slots: u32,
        hold: Duration,
    ) -> Result<Self, Failure> {
        let (sender, incoming) = join(leader, name, slots).await?;
        beat(sender.clone(), false);
        Ok(Self {
            sender,
            incoming,
            hold,
            held: VecDeque::new(),
            free: VecDeque::new(),
            fresh: slots,
            reports: HashMap::new(),
            number: 0,
        })
    }

    /// Until the stream ends.
    pub(crate) async fn work(mut self, seen: &UnboundedSender<Seen>) -> Result<(), Failure> {
        loop {
            let due = self.held.front().map(|(due, _)| *due);
            let until_due =
                due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
            tokio::select! {
                message = self.incoming.message() => match message?.ok_or("the stream has ended")?.message {
                    Some(to_executor::Message::Assign(assign)) => self.assigned(assign, seen)?,
                    Some(to_executor::Message::Answer(answer)) => {
                        if answer.outcome() != Outcome::Accepted {
                            return Err(format!("refused: {answer:?}").into());
                        }
                        self.answered(answer.number, seen)?;
                    }
                    _ => {}
                },
                () = tokio::time::sleep(until_due), if due.is_some() => {
                    if let Some((_, task)) = self.held.pop_front() {
                        self.intend(task)?;
                    }
                }
            }
        }
    }

    fn assigned(&mut self, assign: Assign, seen: &UnboundedSender<Seen>) -> Result<(), Failure> {
        let at = Instant::now();
        let task = assign.task.ok_or("an assignment without a task")?;
        let waited = match self.fresh {
            0 => {
                let since = self.free.pop_front().ok_or("more tasks than places")?;
                Some(at.duration_since(since))
            }
            _ => {
                self.fresh -= 1;
                None
            }
        };
        seen.send(Seen::Assigned { at, waited })?;
        match self.hold.is_zero() {
            true => self.intend(task),
            false => {
                self.held.push_back((at + self.hold, task));
                Ok(())
            }
        }
    }

    fn intend(&mut self, task: TaskId) -> Result<(), Failure> {
        let commit = json!({
            "manifest": {
                "slice": task.slice, "sequence": 0, "rows": 0, "checksum": 0, "epoch": task.epoch,
                "payload": null,
            },
            "account": { "nodes": {}, "rows_written": 0, "checksum": 0, "cursors": {} },
            "resume_at": null,
        });
        let fact = Fact::Intent(serde_json::to_vec(&commit)?);
        self.report(Waiting { task, since: Instant::now(), step: Step::Intent }, fact)
    }

    fn answered(&mut self, number: u64, seen: &UnboundedSender<Seen>) -> Result<(), Failure> {
        let waiting = self.reports.remove(&number).ok_or("unknown answer")?;
        let (step, fact) = match waiting.step {
            Step::Intent => (Step::Done, Fact::Done(0)),
            Step::Done => {
                let account =
                    json!({ "nodes": {}, "rows_written": 0, "checksum": 0, "cursors": {} });
                let end = serde_json::to_vec(&json!({ "committed": account }))?;
                self.free.push_back(Instant::now());
                (Step::End, Fact::End(end))
            }
            Step::End => {
                let at = Instant::now();
                seen.send(Seen::Ended { at, took: at.duration_since(waiting.since) })?;
                return Ok(());
            }
        };
        self.report(Waiting { step, ..waiting }, fact)
    }

    fn report(&mut self, waiting: Waiting, fact: Fact) -> Result<(), Failure> {
        self.number += 1;
        let task = Some(waiting.task.clone());
        let report = Report { number: self.number, task, fact: Some(fact) };
        self.reports.insert(self.number, waiting);
        self.sender.send(FromExecutor { message: Some(Message::Report(report)) })?;
        Ok(())
    }
}
