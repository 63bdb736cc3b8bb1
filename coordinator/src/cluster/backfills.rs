//! The leader's work on backfills: begins windows, each with a run of its own, as long as there are any.
//!
//! ```text
//! ledger ─next_windows─▶ StartRun or ResumeRun ─▶ Session ─▶ FinishRun ─┐
//!    ▲                                                                  │
//!    └────────────── finished, failed, pending again ◀──────────────────┘
//! ```
//!
//! Nothing is remembered here: what is at work is in the ledger, and the next leader goes on from there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use weir_ledger::{
    Again, BACKFILL_PREFIX, BackfillChange, BackfillFacts, BackfillId, BackfillState,
    ChangeBackfill, Command, CreateBackfill, Ledger, Rejection, ResumeRun, RunFacts, RunId,
    RunState, StartRun, WindowOf, WindowRange, WindowState,
};
use weir_spec::{PipelineSpec, Windows, WriteMode};

use super::leading::{Leading, Stopped, engine};
use super::next_windows::next_windows;
use super::requests::Request;
use super::sizes::{check_params, check_step};
use crate::frozen::{
    FrozenBackfill, read_backfill, read_ended, read_frozen, spec_hash, write_backfill, write_frozen,
};
use crate::params::complete_params;
use crate::pipeline_files::PipelineFiles;
use crate::session::ledger_error;
use crate::store::StoreError;
use crate::surroundings::{new_uuid, now};
use crate::{EngineError, Frozen, RunRequest};

/// Without a change of a window it is looked at again after this time.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// Between two attempts at staging that could not be removed.
const BETWEEN_CLEANING: Duration = Duration::from_secs(60);
/// Windows at work for each place of the executors: some are planned or ended while others are loaded.
const WINDOWS_PER_PLACE: usize = 2;
/// Windows that the name of a request lists.
const LONGEST_LIST: usize = 16;
/// Of one backfill.
pub(super) const MOST_PARALLEL: u32 = 256;

/// What a client wants, checked as far as it can be without the ledger.
#[derive(Debug)]
pub(super) struct WantedBackfill {
    pub(super) request: RunRequest,
    pub(super) from: DateTime<Utc>,
    pub(super) to: DateTime<Utc>,
    pub(super) step: String,
    pub(super) parallel: u32,
    pub(super) priority: i32,
}

impl Leading {
    /// Begins a backfill. Whether it is a new one.
    pub(super) async fn create_backfill(
        self: &Arc<Self>,
        spec: &PipelineSpec,
        text: &str,
        base_dir: PathBuf,
        wanted: WantedBackfill,
    ) -> Result<(BackfillId, bool), EngineError> {
        let _beginning = self.beginning.lock().await;
        if let Some(reason) = refusal(spec) {
            return Err(EngineError::Invalid(reason));
        }
        if !(1..=MOST_PARALLEL).contains(&wanted.parallel) {
            return Err(EngineError::Invalid(format!(
                "{} windows at once: write a number from 1 to {MOST_PARALLEL}",
                wanted.parallel
            )));
        }
        check_step(&wanted.step)?;
        let windows = Windows::new(wanted.from, wanted.to, &wanted.step, &spec.timezone)
            .map_err(|error| EngineError::Invalid(error.to_string()))?;
        let params = complete_params(&spec.params, &wanted.request.params)?;
        check_params(&params)?;
        let request = RunRequest { params: params.clone(), ..RunRequest::default() };
        let backfill = new_backfill_id();
        let files = PipelineFiles::of(&self.settings.storage, &spec.pipeline);
        let spec_hash = spec_hash(spec, &request)?;
        let create = CreateBackfill {
            epoch: self.epoch,
            backfill: backfill.clone(),
            pipeline: spec.pipeline.clone(),
            spec_hash,
            params,
            version: wanted.request.version,
            range: WindowRange {
                from: wanted.from,
                to: wanted.to,
                step: wanted.step,
                timezone: spec.timezone.clone(),
                count: windows.count(),
            },
            parallel: wanted.parallel,
            priority: wanted.priority,
            request_id: wanted.request.request_id,
            at: now(),
        };
        if let Some(id) = &create.request_id
            && let Some(known) = self.with_ledger(|ledger| same_backfill(ledger, id, &create)).await
        {
            return known.map(|known| (known, false));
        }
        write_backfill(
            &files,
            &FrozenBackfill {
                backfill: backfill.clone(),
                spec: spec.clone(),
                spec_text: text.to_owned(),
                base_dir,
                request,
            },
        )
        .await?;
        self.append(Command::CreateBackfill(create)).await?;
        tracing::info!(%backfill, windows = windows.count(), "backfill begins");
        self.windows_changed.notify_one();
        Ok((backfill, true))
    }

    /// Answers a cancellation once the windows that were at work have stopped. A request that comes again changes
    /// nothing more.
    pub(super) async fn change_backfill(
        &self,
        id: &str,
        change: BackfillChange,
        request_id: &str,
    ) -> Result<BackfillId, EngineError> {
        let backfill = self.with_backfill(id, |id, _| id.clone()).await?;
        let is_cancelled = change == BackfillChange::Cancel;
        let request = request_of(request_id, &backfill, &change);
        let command =
            ChangeBackfill { epoch: self.epoch, backfill: backfill.clone(), change, at: now() };
        // Also where it was the name of something that begins.
        self.is_answered(&request).await?;
        match self.append_once(request, Command::ChangeBackfill(command)).await? {
            Ok(_) => {}
            Err(Rejection::WindowState { backfill, window, state }) => {
                return Err(EngineError::Refused(format!(
                    "window {window} of backfill {backfill} is {state}: only failed windows are retried \
                     (`weir backfill windows {backfill} --status failed` lists them)"
                )));
            }
            Err(rejection) => return Err(EngineError::Refused(rejection.to_string())),
        }
        self.windows_changed.notify_one();
        if is_cancelled {
            self.stop_windows(&backfill).await;
        }
        Ok(backfill)
    }

    /// Whether a run is of a backfill that was cancelled meanwhile.
    pub(super) async fn is_cancelled(&self, run: &RunFacts) -> bool {
        let Some(of) = &run.backfill else { return false };
        let state = self.with_ledger(|ledger| Some(ledger.backfill(&of.backfill)?.state.clone()));
        state.await == Some(BackfillState::Cancelled)
    }

    /// One that has just been given to its session is found in the next round.
    async fn stop_windows(&self, backfill: &BackfillId) {
        loop {
            let running = self
                .with_ledger(|ledger| {
                    let facts = ledger.backfill(backfill)?;
                    let is_cancelled = facts.state == BackfillState::Cancelled;
                    let runs = facts.running.iter();
                    let runs = runs.filter_map(|window| facts.run_of(backfill, *window));
                    Some(runs.collect::<Vec<_>>()).filter(|_| is_cancelled)
                })
                .await
                .unwrap_or_default();
            if running.is_empty() {
                return;
            }
            for run in &running {
                drop(self.stop_session(run, Stopped::because("cancelled")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A backfill by its id or a unique beginning of it.
    pub(super) async fn with_backfill<T>(
        &self,
        id: &str,
        look: impl FnOnce(&BackfillId, &BackfillFacts) -> T,
    ) -> Result<T, EngineError> {
        let ledger = self.store.ledger().await;
        let exact = BackfillId(id.to_owned());
        if let Some(facts) = ledger.backfill(&exact) {
            return Ok(look(&exact, facts));
        }
        let mut found = ledger.backfills.iter().filter(|(known, _)| known.0.starts_with(id));
        match (found.next(), found.next()) {
            (Some((id, facts)), None) => Ok(look(id, facts)),
            (Some((one, _)), Some((other, _))) => Err(EngineError::Invalid(format!(
                "`{id}` is the beginning of several backfills, {one} and {other} among them"
            ))),
            (None, _) => Err(EngineError::NotFound(format!("backfill {id}"))),
        }
    }

    /// A window's run that the ledger has forgotten, as its folder has it.
    pub(super) async fn forgotten_run(&self, id: &str) -> Option<(RunId, RunFacts)> {
        // `<backfill>-<window>` or `<backfill>-<window>-<n>`.
        let files = self
            .with_ledger(|ledger| {
                let of = format!("{BACKFILL_PREFIX}{id}");
                let (_, facts) = (ledger.backfills.iter())
                    .find(|(backfill, _)| of.starts_with(&format!("{backfill}-")))?;
                Some(PipelineFiles::of(&self.settings.storage, &facts.pipeline))
            })
            .await?;
        let is_plain = id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let run = RunId(id.to_owned());
        let facts = if is_plain { read_ended(&files, &run).await.ok()? } else { return None };
        Some((run, facts))
    }

    /// Until this leadership ends.
    pub(super) async fn keep_backfills(leading: Weak<Self>) {
        let mut cleaned_at: Option<Instant> = None;
        loop {
            let Some(leading) = leading.upgrade() else { return };
            let changed = leading.windows_changed.notified();
            let places = leading.pool.capacity().max(1) * WINDOWS_PER_PLACE;
            let on_their_way = leading.on_their_way().clone();
            let next = leading
                .with_ledger(|ledger| next_windows(&ledger.backfills, places, &on_their_way))
                .await;
            let begun = {
                // What has begun and has no session yet is not to be taken up.
                let _beginning = leading.beginning.lock().await;
                let beginning = next.iter().map(|of| leading.begin_window(of));
                futures::future::join_all(beginning).await
            };
            let is_any_begun = begun.iter().any(Result::is_ok);
            for (of, result) in next.iter().zip(begun) {
                match result {
                    Ok(()) => {}
                    Err(error @ EngineError::Ledger { .. }) => {
                        return tracing::error!(%error, "windows cannot begin");
                    }
                    // The storage, most likely. It is tried again.
                    Err(error) => tracing::warn!(
                        backfill = %of.backfill, window = of.window, %error, "the window cannot begin"
                    ),
                }
            }
            if cleaned_at.is_none_or(|at| at.elapsed() >= BETWEEN_CLEANING) {
                leading.clean_up_windows().await;
                cleaned_at = Some(Instant::now());
            }
            if !is_any_begun {
                let _ = tokio::time::timeout(BETWEEN_LOOKS, changed).await;
            }
        }
    }

    /// Gives a window a run: the one that it has had, if that can go on, or else a new one. Where its target has to be asked
    /// first, or a session has not left yet, that goes on by itself. To be called with `beginning`.
    async fn begin_window(self: &Arc<Self>, of: &WindowOf) -> Result<(), EngineError> {
        let WindowOf { backfill, window } = of;
        let Some(next) = self.with_ledger(|ledger| next_of(ledger.backfill(backfill)?, of)).await
        else {
            return Ok(());
        };
        let files = PipelineFiles::of(&self.settings.storage, &next.start.pipeline);
        let start = StartRun { epoch: self.epoch, ..next.start };
        let Some(before) = next.before else { return self.start_window(&files, start).await };
        let run = self.with_ledger(|ledger| ledger.run(&before).cloned()).await;
        let Some(run) = run.filter(|run| !run.state.is_terminal()) else {
            return self.start_window(&files, start).await;
        };
        let goes_on = !next.is_fresh && run.may_have_committed();
        if goes_on && !self.sessions().contains_key(&before) {
            return self.resume_window(&files, of, before).await;
        }
        self.on_their_way().insert(of.clone());
        let (leading, of, window) = (Arc::clone(self), of.clone(), *window);
        self.ways.spawn(async move {
            // It has failed, and is about to leave.
            leading.leave_off(&before).await;
            let begun = match goes_on {
                true => {
                    let _beginning = leading.beginning.lock().await;
                    leading.resume_window(&files, &of, before).await
                }
                false => leading.begin_afresh(&files, window, &before, start).await,
            };
            leading.on_their_way().remove(&of);
            if let Err(error) = begun {
                tracing::warn!(backfill = %of.backfill, window, %error, "the window cannot begin");
            }
            leading.windows_changed.notify_one();
        });
        Ok(())
    }

    /// Windows whose last runs are given up, or about to leave, before they begin.
    fn on_their_way(&self) -> MutexGuard<'_, BTreeSet<WindowOf>> {
        self.windows_on_their_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up the run that a window has had, and begins another one.
    async fn begin_afresh(
        self: &Arc<Self>,
        files: &PipelineFiles,
        window: u32,
        before: &RunId,
        start: StartRun,
    ) -> Result<(), EngineError> {
        let given_up = self.give_up(files, before).await;
        let _beginning = self.beginning.lock().await;
        match given_up {
            Ok(()) => self.start_window(files, start).await,
            Err(error @ EngineError::Ledger { .. }) => self.unless_broken(Err(error)),
            Err(error) => {
                let error = format!("window {window} cannot begin afresh: {error}");
                self.fail_window(before, &error).await
            }
        }
    }

    async fn start_window(
        self: &Arc<Self>,
        files: &PipelineFiles,
        start: StartRun,
    ) -> Result<(), EngineError> {
        let (run, backfill) = (start.run.clone(), start.backfill.clone().map(|of| of.backfill));
        let backfill = backfill.expect("it is of a window");
        let FrozenBackfill { spec, spec_text, base_dir, request, .. } =
            read_backfill(files, &backfill).await?;
        let frozen = Frozen {
            run: run.0.clone(),
            pipeline: spec.pipeline.to_string(),
            spec,
            spec_text,
            base_dir,
            request: RunRequest { window: start.window, ..request },
        };
        write_frozen(files, &frozen).await?;
        if self.append_unless_changed(Command::StartRun(start)).await? {
            self.start(run, Some(backfill), frozen);
        }
        Ok(())
    }

    async fn resume_window(
        self: &Arc<Self>,
        files: &PipelineFiles,
        of: &WindowOf,
        run: RunId,
    ) -> Result<(), EngineError> {
        let frozen = match read_frozen(files, &run).await {
            Ok(frozen) => frozen,
            // It is tried again.
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => return self.fail_window(&run, &error.to_string()).await,
        };
        let resume = ResumeRun { epoch: self.epoch, run: run.clone(), request_id: None, at: now() };
        if self.append_unless_changed(Command::ResumeRun(resume)).await? {
            self.start(run, Some(of.backfill.clone()), frozen);
        }
        Ok(())
    }

    async fn give_up(&self, files: &PipelineFiles, run: &RunId) -> Result<(), EngineError> {
        let base_dir = match read_frozen(files, run).await {
            Ok(frozen) => frozen.base_dir,
            Err(_) => self.settings.context.base_dir.clone(),
        };
        let engine = engine(&self.settings, base_dir, self.slices());
        let Some(settled) = engine.settle(&self.store, files, self.epoch, run).await? else {
            return Ok(());
        };
        {
            // Nobody takes the run up while the ledger is told.
            let _beginning = self.beginning.lock().await;
            engine.give_up(&self.store, self.epoch, &settled).await?;
        }
        let facts = Some(&settled.facts);
        engine.remove_staging(&self.store, files, self.epoch, run, facts).await
    }

    /// It fails as it had failed before, with another error.
    async fn fail_window(&self, run: &RunId, error: &str) -> Result<(), EngineError> {
        let error = self.settings.context.redactor.redact(error);
        if self.with_ledger(|ledger| ledger.run(run).is_none()).await {
            return Ok(());
        }
        let resume = ResumeRun { epoch: self.epoch, run: run.clone(), request_id: None, at: now() };
        match self.append_unless_changed(Command::ResumeRun(resume)).await? {
            true => self.finish(run, &error).await,
            false => Ok(()),
        }
    }

    /// False: the backfill has been paused or cancelled meanwhile.
    async fn append_unless_changed(&self, command: Command) -> Result<bool, EngineError> {
        match self.store.append(command).await {
            Ok(_) => Ok(true),
            Err(StoreError::Rejected(
                rejection @ (Rejection::BackfillState { .. } | Rejection::WindowState { .. }),
            )) => {
                tracing::debug!(%rejection, "the window does not begin");
                Ok(false)
            }
            Err(error) => self.unless_broken(Err(ledger_error(self.store.path(), &error))),
        }
    }

    /// Removes the staging of windows' runs that are over, where that failed before.
    async fn clean_up_windows(&self) {
        let left: Vec<(RunId, RunFacts)> = self
            .with_ledger(|ledger| {
                let runs = ledger.runs.iter().filter(|(_, run)| {
                    run.backfill.is_some()
                        && !run.cleaned_up
                        && match run.state {
                            RunState::Queued | RunState::Running | RunState::Failed { .. } => false,
                            RunState::Succeeded { .. }
                            | RunState::Abandoned { .. }
                            | RunState::Skipped { .. } => true,
                        }
                });
                runs.map(|(id, run)| (id.clone(), run.clone())).collect()
            })
            .await;
        for (run, facts) in left {
            let files = self.files(&facts);
            let Ok(frozen) = read_frozen(&files, &run).await else { continue };
            let engine = engine(&self.settings, frozen.base_dir, self.slices());
            let removing =
                engine.remove_staging(&self.store, &files, self.epoch, &run, Some(&facts));
            if let Err(error) = removing.await {
                tracing::warn!(%run, %error, "staging of a window is left");
            }
        }
    }
}

/// A pending window, about to begin.
struct Next {
    /// The run that it has had last.
    before: Option<RunId>,
    /// That run is to be given up, whatever it has committed.
    is_fresh: bool,
    /// With which it begins anew. The epoch is missing.
    start: StartRun,
}

/// What a request has created before, if it has: the name of a request is for one backfill.
fn same_backfill(
    ledger: &Ledger,
    request_id: &str,
    wanted: &CreateBackfill,
) -> Option<Result<BackfillId, EngineError>> {
    let known = ledger.backfill_of_request(request_id)?;
    let facts = ledger.backfill(known)?;
    // Its priority may have been changed since.
    let is_same = facts.pipeline == wanted.pipeline
        && facts.spec_hash == wanted.spec_hash
        && facts.params == wanted.params
        && facts.range == wanted.range
        && facts.parallel == wanted.parallel;
    Some(match is_same {
        true => Ok(known.clone()),
        false => Err(EngineError::Refused(format!(
            "request {request_id} was for backfill {known}, which is of another pipeline, or other parameters or \
             windows of it: give a new request a new id"
        ))),
    })
}

/// What a change of a backfill is called when it comes again: all that it says.
fn request_of(request_id: &str, backfill: &BackfillId, change: &BackfillChange) -> Request {
    let (method, details) = match change {
        BackfillChange::Pause => ("Backfills/Pause", String::new()),
        BackfillChange::Resume => ("Backfills/Resume", String::new()),
        BackfillChange::Cancel => ("Backfills/Cancel", String::new()),
        BackfillChange::SetPriority(priority) => {
            ("Backfills/SetPriority", format!(", priority {priority}"))
        }
        BackfillChange::Retry { windows, again } => {
            let windows = match windows.as_deref() {
                None => "all".to_owned(),
                Some(windows) if windows.len() <= LONGEST_LIST => format!("{windows:?}"),
                // The ledger keeps it for as long as the request may come again.
                Some(windows) => {
                    let numbers: Vec<u8> =
                        windows.iter().flat_map(|window| window.to_le_bytes()).collect();
                    format!("{} ({})", windows.len(), blake3::hash(&numbers).to_hex())
                }
            };
            let how = match again {
                Again::Fresh => "afresh",
                Again::GoOn => "again",
            };
            ("Backfills/RetryWindows", format!(", windows {windows} {how}"))
        }
    };
    Request::new(request_id, method, format!("{backfill}{details}"))
}

/// `None`: it is not pending any more.
fn next_of(facts: &BackfillFacts, of: &WindowOf) -> Option<Next> {
    let WindowOf { backfill, window } = of;
    if facts.window(*window) != Some(WindowState::Pending) {
        return None;
    }
    Some(Next {
        before: facts.run_of(backfill, *window),
        is_fresh: facts.again.get(window) == Some(&Again::Fresh),
        start: StartRun {
            epoch: 0,
            run: facts.next_run_of(backfill, *window),
            pipeline: facts.pipeline.clone(),
            spec_hash: facts.spec_hash.clone(),
            params: facts.params.clone(),
            window: Some(bounds(facts).ok()?.get(*window)?),
            version: facts.version,
            request_id: None,
            backfill: Some(of.clone()),
            replay_of: None,
            at: now(),
        },
    })
}

pub(super) fn bounds(facts: &BackfillFacts) -> Result<Windows, EngineError> {
    let WindowRange { from, to, step, timezone, .. } = &facts.range;
    Windows::new(*from, *to, step, timezone)
        .map_err(|error| EngineError::Invalid(error.to_string()))
}

/// Why a pipeline cannot be loaded window by window.
fn refusal(spec: &PipelineSpec) -> Option<String> {
    if !spec.reads_window() {
        return Some(format!(
            "pipeline `{}` cannot be backfilled: none of its sources and transforms uses `{{{{ \
             window.start }}}}` or `{{{{ window.end }}}}`, so that every window would load the same \
             rows. Read the window's rows only, e.g. with path: \"events/day={{{{ window.start[:10] \
             }}}}/*.parquet\"",
            spec.pipeline
        ));
    }
    let incremental = spec.sources.iter().find(|(_, source)| source.incremental().is_some());
    if let Some((node, _)) = incremental {
        return Some(format!(
            "pipeline `{}` cannot be backfilled: source `{node}` is incremental, and reads what it has \
             not read before instead of a window. Leave `incremental` out, and filter by `window.start` \
             and `window.end`",
            spec.pipeline
        ));
    }
    let replacing = spec.sinks.iter().find(|(_, sink)| sink.mode == WriteMode::Replace);
    replacing.map(|(node, _)| {
        format!(
            "pipeline `{}` cannot be backfilled: sink `{node}` has `mode: replace`, so that each window \
             would replace what the others have loaded. Use `mode: upsert` or `mode: append`",
            spec.pipeline
        )
    })
}

/// Sorts by time; random enough for several in one second.
fn new_backfill_id() -> BackfillId {
    let random = new_uuid().simple().to_string();
    BackfillId(format!("{BACKFILL_PREFIX}{}-{}", now().format("%Y%m%d-%H%M%S"), &random[..6]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_request_is_for_one_change() {
        let backfill = BackfillId("bf".to_owned());
        let retry = |windows: &[u32], again| BackfillChange::Retry {
            windows: Some(windows.to_vec()),
            again,
        };
        let (few, many) = ([1, 2], (0..100).collect::<Vec<u32>>());
        let changes = [
            BackfillChange::Pause,
            BackfillChange::Resume,
            BackfillChange::Cancel,
            BackfillChange::SetPriority(1),
            BackfillChange::SetPriority(2),
            BackfillChange::Retry { windows: None, again: Again::GoOn },
            retry(&few, Again::GoOn),
            retry(&few[..1], Again::GoOn),
            retry(&few, Again::Fresh),
            retry(&many, Again::GoOn),
            retry(&many[1..], Again::GoOn),
        ];
        let named =
            changes.iter().map(|change| format!("{:?}", request_of("r", &backfill, change)));
        let named: Vec<String> = named.collect();
        for (one, name) in named.iter().enumerate() {
            assert!(name.len() < 300, "{name}");
            assert!(!named[one + 1..].contains(name), "{name}");
        }
    }

    #[test]
    fn what_no_window_can_load_is_refused_by_name() {
        for (source, sink, expected) in [
            ("path: \"{{ window.start[:10] }}.csv\"", "mode: append", None),
            ("path: a.csv", "mode: append", Some("window.start")),
            ("path: \"{{ window.start[:10] }}.csv\"", "mode: replace", Some("sink `s`")),
        ] {
            let text = format!(
                "pipeline: p\nsources: {{ a: {{ type: csv, {source} }} }}\n\
                 sinks: {{ s: {{ input: a, type: csv, path: out, {sink} }} }}\n"
            );
            let spec = weir_spec::parse("p.yaml", &text).expect("a good file").spec;
            let refused = refusal(&spec);
            assert_eq!(refused.is_some(), expected.is_some(), "{refused:?}");
            assert!(refused.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
        let text = "pipeline: p\nsources:\n  a:\n    type: sqlite\n    path: a.db\n    table: t\n    \
                    incremental: { cursor: c }\n\
                    transforms: { b: { sql: \"SELECT * FROM a WHERE d < {{ window.end }}\" } }\n\
                    sinks: { s: { input: b, type: csv, path: out } }\n";
        let spec = weir_spec::parse("p.yaml", text).expect("a good file").spec;
        assert!(refusal(&spec).is_some_and(|reason| reason.contains("source `a` is incremental")));
    }
}
