//! An executor that does nothing: it says of every task at once that its only batch, of no rows, is
//! staged, published, and over. What is left of the time is the leader's: deciding, placing, and
//! putting three facts a task into a ledger on a majority of disks.
//!
//! ```text
//! virtual-executor URL[,URL] SLOTS TASKS      of a cluster without TLS (`--insecure`); ends after so many tasks, and prints how fast they went
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use weir_plan::StageGraph;
use weir_proto::internal::executors_client::ExecutorsClient;
use weir_proto::internal::from_executor::Message;
use weir_proto::internal::report::Fact;
use weir_proto::internal::{
    Assign, FromExecutor, Heartbeat, Hello, Report, TaskId, ToExecutor, to_executor,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("{what} is missing"));
    let (urls, slots, tasks) = (next("URL")?, next("SLOTS")?.parse()?, next("TASKS")?.parse()?);
    let (sender, incoming) = join(&urls, slots).await?;
    let mut executor = Executor { sender, reports: HashMap::new(), number: 0 };
    let done = executor.work(incoming, tasks).await?;
    println!("{}", serde_json::to_string(&done)?);
    Ok(())
}

type Incoming = tonic::Streaming<ToExecutor>;

/// At the leader, whoever that is.
async fn join(
    urls: &str,
    slots: u32,
) -> Result<(UnboundedSender<FromExecutor>, Incoming), Box<dyn Error>> {
    let mut refused = String::new();
    for url in urls.split(',') {
        let channel = tonic::transport::Endpoint::from_shared(url.to_owned())?.connect().await?;
        let (sender, receiver) = unbounded_channel();
        let hello = Hello {
            executor: "virtual".to_owned(),
            boot_id: format!("{:?}", Instant::now()),
            engine_version: StageGraph::ENGINE_VERSION.to_owned(),
            slots,
            memory_bytes: 0,
            host: "here".to_owned(),
            pid: std::process::id(),
        };
        sender.send(FromExecutor { message: Some(Message::Hello(hello)) })?;
        let mut client = ExecutorsClient::new(channel);
        match client.work(UnboundedReceiverStream::new(receiver)).await {
            Ok(answer) => {
                beat(sender.clone());
                return Ok((sender, answer.into_inner()));
            }
            Err(status) => refused.push_str(&format!("{url}: {status}\n")),
        }
    }
    Err(refused.into())
}

fn beat(sender: UnboundedSender<FromExecutor>) {
    tokio::spawn(async move {
        let beat = Message::Heartbeat(Heartbeat { draining: false });
        while sender.send(FromExecutor { message: Some(beat.clone()) }).is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
}

struct Executor {
    sender: UnboundedSender<FromExecutor>,
    /// What is waited for, by the number of its report.
    reports: HashMap<u64, Waiting>,
    number: u64,
}

struct Waiting {
    task: TaskId,
    assigned_at: Instant,
    step: Step,
}

enum Step {
    Intent,
    Done,
    End,
}

#[derive(serde::Serialize)]
struct Measured {
    tasks: usize,
    seconds: f64,
    tasks_per_second: f64,
    /// From the assignment to the answer to the last report.
    median_task_millis: f64,
    p99_task_millis: f64,
}

impl Executor {
    async fn work(
        &mut self,
        mut incoming: Incoming,
        tasks: usize,
    ) -> Result<Measured, Box<dyn Error>> {
        let mut began: Option<Instant> = None;
        let mut times = Vec::with_capacity(tasks);
        while times.len() < tasks {
            let Some(ToExecutor { message }) = incoming.message().await? else {
                return Err("the stream has ended".into());
            };
            match message {
                Some(to_executor::Message::Assign(assign)) => {
                    began.get_or_insert_with(Instant::now);
                    self.intend(assign)?;
                }
                Some(to_executor::Message::Answer(answer)) => {
                    if answer.outcome != 1 {
                        return Err(format!("refused: {answer:?}").into());
                    }
                    let waiting = self.reports.remove(&answer.number).ok_or("unknown answer")?;
                    times.extend(self.go_on(waiting)?);
                }
                _ => {}
            }
        }
        let seconds = began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        times.sort();
        let at = |share: f64| {
            let index = ((times.len() as f64 * share) as usize).min(times.len() - 1);
            times[index].as_secs_f64() * 1e3
        };
        Ok(Measured {
            tasks,
            seconds,
            tasks_per_second: tasks as f64 / seconds,
            median_task_millis: at(0.5),
            p99_task_millis: at(0.99),
        })
    }

    fn intend(&mut self, assign: Assign) -> Result<(), Box<dyn Error>> {
        let task = assign.task.ok_or("an assignment without a task")?;
        let commit = json!({
            "manifest": {
                "slice": task.slice, "sequence": 0, "rows": 0, "checksum": 0, "epoch": task.epoch,
                "payload": null,
            },
            "account": { "nodes": {}, "rows_written": 0, "checksum": 0, "cursors": {} },
            "resume_at": null,
        });
        let fact = Fact::Intent(serde_json::to_vec(&commit)?);
        self.report(Waiting { task, assigned_at: Instant::now(), step: Step::Intent }, fact)
    }

    /// How long the task took, once it is over.
    fn go_on(&mut self, waiting: Waiting) -> Result<Option<Duration>, Box<dyn Error>> {
        let (step, fact) = match waiting.step {
            Step::Intent => (Step::Done, Fact::Done(0)),
            Step::Done => {
                let account =
                    json!({ "nodes": {}, "rows_written": 0, "checksum": 0, "cursors": {} });
                let end = serde_json::to_vec(&json!({ "committed": account }))?;
                (Step::End, Fact::End(end))
            }
            Step::End => return Ok(Some(waiting.assigned_at.elapsed())),
        };
        self.report(Waiting { step, ..waiting }, fact)?;
        Ok(None)
    }

    fn report(&mut self, waiting: Waiting, fact: Fact) -> Result<(), Box<dyn Error>> {
        self.number += 1;
        let task = Some(waiting.task.clone());
        let report = Report { number: self.number, task, fact: Some(fact) };
        self.reports.insert(self.number, waiting);
        self.sender.send(FromExecutor { message: Some(Message::Report(report)) })?;
        Ok(())
    }
}
