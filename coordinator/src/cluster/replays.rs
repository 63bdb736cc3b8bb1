//! Rejected rows of a run, sent through the pipeline again: a run of its own that reads them in place of what
//! has rejected them.
//!
//! ```text
//! Replay ─▶ replay/<name>/<node>.jsonl, durable ─replayed─▶ spec ─▶ Submit
//! ```
//!
//! Once, whoever leads: a request that comes again means the run that it has made, and rows that no run has come to
//! read are of no account.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use weir_connectors::durable::create_dir_all_durable;
use weir_ledger::{RunFacts, RunId, RunState};
use weir_proto::v1;
use weir_proto::v1::replay_request::Part;
use weir_spec::{NodeName, PipelineSpec};

use super::leading::{Leading, Submitted};
use super::queue::check_not_skipped;
use crate::dead_letters::read_dead_letters;
use crate::frozen::{read_frozen, read_graph};
use crate::replay::{replayed, unreadable_rows};
use crate::state_dir::state_error;
use crate::surroundings::{new_uuid, now};
use crate::validated::validated_columns;
use crate::{DeadLetter, EngineError, RunRequest};

/// Of mended rows that a client sends.
const MOST_BYTES: u64 = 1 << 30;

/// What a client wants, without the rows.
#[derive(Debug)]
pub(super) struct WantedReplay {
    pub(super) run: String,
    pub(super) node: Option<NodeName>,
    /// The pipeline as mended: what it says, its text, and where its relative paths start.
    pub(super) mended: Option<(PipelineSpec, String, PathBuf)>,
    pub(super) request_id: Option<String>,
}

/// Where the rows come from.
pub(super) enum Rows {
    /// What the run has rejected.
    Rejected,
    /// So many bytes of JSON lines, which the client sends.
    Sent { bytes: u64, stream: Box<Streaming<v1::ReplayRequest>> },
}

/// A replay whose rows are written.
#[derive(Debug)]
struct Prepared {
    run: RunId,
    facts: RunFacts,
    /// What it says, its text, and where its relative paths start.
    pipeline: (PipelineSpec, String, PathBuf),
    given: IndexMap<NodeName, PathBuf>,
    request: RunRequest,
}

impl Leading {
    /// `None`: there is nothing to replay.
    pub(super) async fn replay(
        self: &Arc<Self>,
        wanted: WantedReplay,
        rows: Rows,
    ) -> Result<Option<Submitted>, EngineError> {
        let (run, facts) = self.find(&wanted.run).await?;
        if let Some(id) = &wanted.request_id
            && let Some(submitted) = self.submitted_before(id).await
        {
            return self.check_is_replay_of(&run, id, submitted).await.map(Some);
        }
        if matches!(facts.state, RunState::Queued | RunState::Running) {
            return Err(EngineError::Refused(format!(
                "run {run} is going on, and may reject more rows: replay them once it has ended"
            )));
        }
        check_not_skipped(&run, &facts)?;
        let frozen = read_frozen(&self.files(&facts), &run).await?;
        let pipeline = match wanted.mended {
            Some(mended) => mended,
            None => (frozen.spec, frozen.spec_text, frozen.base_dir),
        };
        let written =
            self.write_rows(&run, &facts, &pipeline.0, wanted.node.as_ref(), rows).await?;
        let Some(Written { folder, given }) = written else { return Ok(None) };
        let request = RunRequest {
            fresh: false,
            resume: None,
            replay_of: Some(run.0.clone()),
            version: None,
            request_id: wanted.request_id,
            ..frozen.request
        };
        let prepared =
            Prepared { run: run.clone(), facts, pipeline, given, request: request.clone() };
        let submitted = self.submit_replay(prepared).await;
        let is_read = match &submitted {
            Ok(submitted) => submitted.is_new,
            // Perhaps the ledger has the run.
            Err(error) => matches!(error, EngineError::Ledger { .. }),
        };
        if !is_read {
            remove(&folder).await;
        }
        let submitted = submitted?;
        match &request.request_id {
            // It came twice at once.
            Some(id) if !submitted.is_new => {
                self.check_is_replay_of(&run, id, submitted).await.map(Some)
            }
            _ => Ok(Some(submitted)),
        }
    }

    /// The name of a request is for one thing.
    async fn check_is_replay_of(
        &self,
        run: &RunId,
        request_id: &str,
        submitted: Submitted,
    ) -> Result<Submitted, EngineError> {
        let (replay, facts) = self.find(&submitted.run.0).await?;
        let frozen = read_frozen(&self.files(&facts), &replay).await?;
        if frozen.request.replay_of.as_ref() == Some(&run.0) {
            return Ok(submitted);
        }
        Err(EngineError::Refused(format!(
            "request {request_id} was for run {replay}, which replays no rows of run {run}: give a new \
             request a new id"
        )))
    }

    async fn submit_replay(
        self: &Arc<Self>,
        Prepared { run, facts, pipeline, given, request }: Prepared,
    ) -> Result<Submitted, EngineError> {
        let inputs = match read_graph(&self.files(&facts), &run, &facts).await? {
            None => IndexMap::new(),
            Some(graph) => validated_columns(&graph)
                .map_err(|error| EngineError::Invalid(format!("the plan of run {run}: {error}")))?,
        };
        let (spec, text, base_dir) = pipeline;
        let spec = replayed(&spec, &given, &inputs).map_err(EngineError::Invalid)?;
        self.submit(&spec, &text, base_dir, request).await
    }

    /// A file for each node, in a folder of its own: an interrupted replay needs its rows until it is finished. `None`: there
    /// are no rows.
    async fn write_rows(
        &self,
        run: &RunId,
        facts: &RunFacts,
        spec: &PipelineSpec,
        node: Option<&NodeName>,
        rows: Rows,
    ) -> Result<Option<Written>, EngineError> {
        let files = self.files(facts);
        // Sources read files: those of an object store they would have to be given.
        let Some(local) = files.storage().local() else {
            return Err(EngineError::Invalid(
                "rejected rows cannot be replayed while the cluster's storage is an object store: this needs \
                 a folder that all executors share"
                    .to_owned(),
            ));
        };
        let random = new_uuid().simple().to_string();
        let name = format!("{run}-{}-{}", now().format("%Y%m%d-%H%M%S"), &random[..6]);
        let folder = local.join("replay").join(name);
        // Executors do not start where this process does.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        let (bytes, stream) = match (rows, node) {
            (Rows::Rejected, node) => {
                let (run, pipeline) = (files.run(run), facts.pipeline.0.clone());
                let letters = read_dead_letters(run, pipeline, facts.clone(), node.cloned());
                let given = write_letters(folder.clone(), letters).await?;
                return Ok(Some(Written { folder, given }).filter(|rows| !rows.given.is_empty()));
            }
            (Rows::Sent { bytes, stream }, Some(_)) => (bytes, stream),
            (Rows::Sent { .. }, None) => {
                return Err(EngineError::Invalid(
                    "mended rows are those of one node: name it".to_owned(),
                ));
            }
        };
        let node = node.expect("just looked at").clone();
        // It becomes the name of a file.
        if !spec.sources.contains_key(&node) && !spec.transforms.contains_key(&node) {
            return Err(EngineError::Invalid(format!(
                "the pipeline has no source or transform `{node}`"
            )));
        }
        let path = folder.join(format!("{node}.jsonl"));
        let received = receive(&folder, &path, bytes, stream).await;
        if received.is_err() {
            // Half of the rows are of no use.
            remove(&folder).await;
        }
        received?;
        Ok(Some(Written { folder, given: IndexMap::from([(node, path)]) }))
    }
}

/// Rows that are to be replayed, durable.
#[derive(Debug)]
struct Written {
    /// Theirs alone.
    folder: PathBuf,
    given: IndexMap<NodeName, PathBuf>,
}

/// The rejected rows as they are, by node. Rows that are raw text can only be mended by a person.
async fn write_letters(
    folder: PathBuf,
    mut letters: mpsc::Receiver<Result<DeadLetter, EngineError>>,
) -> Result<IndexMap<NodeName, PathBuf>, EngineError> {
    let at = folder.clone();
    let writing = off_thread(move || {
        let mut files = RowFiles { folder, files: BTreeMap::new() };
        while let Some(letter) = letters.blocking_recv() {
            files.add(&letter?)?;
        }
        files.finish()
    });
    let written = writing.await;
    if written.is_err() {
        // Half of the rows are of no use.
        remove(&at).await;
    }
    written
}

/// A leader's threads answer heartbeats: none of them waits for a disk.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(stopped) => {
            let (attempt, path) = ("write", "the rows of a replay".to_owned());
            Err(EngineError::State { attempt, path, source: io::Error::other(stopped) })
        }
    }
}

/// Rows that no run reads.
async fn remove(folder: &Path) {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %folder.display(), %error, "rows that nobody replays are left");
        }
        _ => {}
    }
}

/// Names of files in a folder, on the disk.
fn sync_names(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Rows of JSON lines, a file for each node.
struct RowFiles {
    folder: PathBuf,
    files: BTreeMap<NodeName, Vec<u8>>,
}

/// Rows that are collected before they are written.
const WRITE_BYTES: usize = 256 << 10;

impl RowFiles {
    fn add(&mut self, letter: &DeadLetter) -> Result<(), EngineError> {
        if !letter.row.is_object() {
            return Err(EngineError::Invalid(unreadable_rows(&letter.node)));
        }
        let rows = self.files.entry(letter.node.clone()).or_default();
        rows.extend_from_slice(letter.row.to_string().as_bytes());
        rows.push(b'\n');
        if rows.len() >= WRITE_BYTES {
            let rows = std::mem::take(rows);
            self.append(&letter.node, &rows)?;
        }
        Ok(())
    }

    fn path(&self, node: &NodeName) -> PathBuf {
        self.folder.join(format!("{node}.jsonl"))
    }

    fn append(&self, node: &NodeName, rows: &[u8]) -> Result<File, EngineError> {
        let path = self.path(node);
        let append = || {
            create_dir_all_durable(&self.folder)?;
            let mut file = File::options().create(true).append(true).open(&path)?;
            file.write_all(rows)?;
            Ok(file)
        };
        append().map_err(|cause: io::Error| state_error("write", &path, cause))
    }

    /// Durable.
    fn finish(self) -> Result<IndexMap<NodeName, PathBuf>, EngineError> {
        let mut given = IndexMap::new();
        for (node, rows) in &self.files {
            let (file, path) = (self.append(node, rows)?, self.path(node));
            file.sync_all().map_err(|cause| state_error("write", &path, cause))?;
            given.insert(node.clone(), path);
        }
        if !given.is_empty() {
            let synced = sync_names(&self.folder);
            synced.map_err(|cause| state_error("write", &self.folder, cause))?;
        }
        Ok(given)
    }
}

/// What a client sends, all of it or nothing.
async fn receive(
    folder: &Path,
    path: &Path,
    bytes: u64,
    mut stream: Box<Streaming<v1::ReplayRequest>>,
) -> Result<(), EngineError> {
    let failed = |cause: io::Error| state_error("write", path, cause);
    if bytes > MOST_BYTES {
        return Err(EngineError::Invalid(format!(
            "{bytes} bytes of rows: {MOST_BYTES} are the most"
        )));
    }
    let at = folder.to_owned();
    off_thread(move || {
        let made = create_dir_all_durable(&at);
        made.map(drop).map_err(|cause| state_error("create", &at, cause))
    })
    .await?;
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    let mut received = 0u64;
    loop {
        let message = stream.message().await;
        let rows = match message {
            Ok(Some(v1::ReplayRequest { part: Some(Part::Rows(rows)) })) => rows,
            Ok(Some(_)) => {
                return Err(EngineError::Invalid("rows follow the start, and nothing else".into()));
            }
            Ok(None) => break,
            Err(status) => {
                return Err(EngineError::Invalid(format!(
                    "the rows have not arrived: {}",
                    status.message()
                )));
            }
        };
        received += rows.len() as u64;
        if received > bytes {
            break;
        }
        file.write_all(&rows).await.map_err(failed)?;
    }
    if received != bytes {
        return Err(EngineError::Invalid(format!(
            "{received} bytes of rows have arrived instead of {bytes}"
        )));
    }
    file.sync_all().await.map_err(failed)?;
    let at = folder.to_owned();
    off_thread(move || sync_names(&at).map_err(|cause| state_error("write", &at, cause))).await
}

/// The first message of a replay.
pub(super) async fn start_of(
    stream: &mut Streaming<v1::ReplayRequest>,
) -> Result<v1::ReplayStart, Status> {
    match stream.message().await? {
        Some(v1::ReplayRequest { part: Some(Part::Start(start)) }) => Ok(start),
        _ => Err(Status::invalid_argument("the first message of a replay says of which run")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::DateTime;
    use serde_json::json;

    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: "r/one/0-0-0/1".to_owned(),
            run: "r".to_owned(),
            pipeline: "p".to_owned(),
            node: NodeName::new("one"),
            attempt: 1,
            at: DateTime::UNIX_EPOCH,
            reasons: Vec::new(),
            row: serde_json::from_value(json!({ "id": 1 })).expect("it is JSON"),
            offset: None,
        }
    }

    fn letters(letters: Vec<DeadLetter>) -> mpsc::Receiver<Result<DeadLetter, EngineError>> {
        let (sender, receiver) = mpsc::channel(8);
        for letter in letters {
            sender.try_send(Ok(letter)).expect("there is room");
        }
        receiver
    }

    #[test]
    fn a_disk_that_hangs_keeps_nothing_else_on_this_thread_waiting() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // To open it waits for a reader, as for a disk.
        let pipe = folder.path().join("one.jsonl");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("coreutils");
        assert!(made.success());
        let (path, (done, is_done)) = (folder.path().to_owned(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let writing = tokio::spawn(write_letters(path, letters(vec![letter()])));
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                done.send(()).expect("it is waited for");
                let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(pipe));
                let read = read.await.expect("no panic").expect("it is written");
                assert_eq!(read, "{\"id\":1}\n");
                // A pipe cannot be synced.
                writing.await.expect("no panic").expect_err("it is no file");
            });
            done.send(()).expect("it is waited for");
        });
        for what in ["the thread goes on", "the rows are written"] {
            is_done.recv_timeout(Duration::from_secs(30)).expect(what);
        }
    }

    #[tokio::test]
    async fn rows_that_cannot_all_be_replayed_leave_nothing() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = place.path().join("replay/r");
        let raw =
            DeadLetter { row: serde_json::from_value(json!("1;2")).expect("JSON"), ..letter() };
        let row = serde_json::from_value(json!({ "id": "x".repeat(WRITE_BYTES) })).expect("JSON");
        let rows = letters(vec![DeadLetter { row, ..letter() }, raw]);
        let refused = write_letters(folder.clone(), rows).await;
        assert!(matches!(refused, Err(EngineError::Invalid(_))), "{refused:?}");
        assert!(!folder.exists());
        let written = write_letters(folder.clone(), letters(vec![letter(), letter()])).await;
        let path = &written.expect("there is room")[&NodeName::new("one")];
        assert_eq!(std::fs::read_to_string(path).expect("it is there"), "{\"id\":1}\n".repeat(2));
    }
}
