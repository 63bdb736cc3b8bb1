//! Executors that do nothing: they say of every task that its only batch, of no rows, is staged, published, and
//! over. What is left of the time is the leader's: deciding, placing, and putting three facts a task into a ledger
//! on a majority of disks.
//!
//! ```text
//! virtual-executor --coordinators URL[,URL] --pipeline FILE --tasks N      of a cluster without TLS (`--insecure`)
//!     [--executors 4] [--slots 256] [--hold-millis 0]
//! ```
//!
//! It submits the pipeline, whose source must be one that is cut into as many slices as there are places when the
//! run is planned: an executor with a place for every task is there while it is, and takes none. Then the virtual
//! executors come, with `slots` places each, and keep every task for `hold-millis`. Once the run has succeeded the
//! figures are printed, as JSON. `scheduling.py` starts a cluster and calls this.

mod figures;
mod stream;

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;
use weir_proto::v1;
use weir_proto::v1::runs_client::RunsClient;

use figures::{Figures, Seen};
use stream::{Executor, Planner};

type Failure = Box<dyn Error + Send + Sync>;

/// A cluster that has just been started elects first.
const LONGEST_ELECTION: Duration = Duration::from_secs(30);

struct Options {
    coordinators: Vec<String>,
    pipeline: PathBuf,
    tasks: u32,
    executors: u32,
    slots: u32,
    hold: Duration,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self {
            coordinators: Vec::new(),
            pipeline: PathBuf::new(),
            tasks: 0,
            executors: 4,
            slots: 256,
            hold: Duration::ZERO,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--coordinators" => {
                    options.coordinators = value.split(',').map(str::to_owned).collect();
                }
                "--pipeline" => options.pipeline = value.into(),
                "--tasks" => options.tasks = value.parse()?,
                "--executors" => options.executors = value.parse()?,
                "--slots" => options.slots = value.parse()?,
                "--hold-millis" => options.hold = Duration::from_millis(value.parse()?),
                _ => return Err(format!("{name} is not an option").into()),
            }
        }
        if options.coordinators.is_empty() || options.tasks == 0 {
            return Err("--coordinators, --pipeline and --tasks are needed".into());
        }
        Ok(options)
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::read(std::env::args().skip(1))?;
    let planner = join_as_planner(&options).await?;
    let leader = planner.leader().to_owned();
    let submitted_at = Instant::now();
    let run = submit(&leader, &options).await?;
    planner.take_no_tasks()?;

    let (seen, mut received) = unbounded_channel();
    for number in 0..options.executors {
        let name = format!("virtual-{number}");
        let executor = Executor::join(&leader, &name, options.slots, options.hold).await?;
        let seen = seen.clone();
        tokio::spawn(async move {
            let ended = executor.work(&seen).await;
            let _ = seen.send(Seen::StreamEnded(ended.err().map(|error| error.to_string())));
        });
    }
    let mut figures = Figures::default();
    while figures.ended() < options.tasks as usize {
        match received.recv().await.ok_or("all executors have ended")? {
            Seen::StreamEnded(why) => return Err(why.unwrap_or_default().into()),
            seen => figures.note(seen),
        }
    }
    await_success(&leader, &run).await?;
    println!("{}", serde_json::to_string(&figures.sum(submitted_at))?);
    Ok(())
}

async fn join_as_planner(options: &Options) -> Result<Planner, Failure> {
    let began = Instant::now();
    loop {
        let mut refused = String::new();
        for url in &options.coordinators {
            match Planner::join(url, options.tasks).await {
                Ok(planner) => return Ok(planner),
                Err(error) => refused.push_str(&format!("{url}: {error}\n")),
            }
        }
        if began.elapsed() > LONGEST_ELECTION {
            return Err(refused.into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn submit(leader: &str, options: &Options) -> Result<String, Failure> {
    let path = std::path::absolute(&options.pipeline)?;
    let folder = path.parent().ok_or("the pipeline is in no folder")?;
    let request = v1::SubmitRequest {
        pipeline: std::fs::read_to_string(&path)?,
        base_dir: folder.display().to_string(),
        fresh: true,
        ..v1::SubmitRequest::default()
    };
    let mut runs = RunsClient::connect(leader.to_owned()).await?;
    Ok(runs.submit(request).await?.into_inner().run)
}

/// After the last task its sink is shown and its staging removed.
async fn await_success(leader: &str, run: &str) -> Result<(), Failure> {
    let mut runs = RunsClient::connect(leader.to_owned()).await?;
    loop {
        let request = v1::GetRunRequest { run: run.to_owned() };
        let run = runs.get(request).await?.into_inner();
        match run.status() {
            v1::RunStatus::Succeeded => return Ok(()),
            v1::RunStatus::Queued | v1::RunStatus::Running => {
                tokio::time::sleep(Duration::from_millis(100)).await
            }
            _ => return Err(format!("the run has not succeeded: {run:?}").into()),
        }
    }
}
