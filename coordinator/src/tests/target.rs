//! A sink's target, as far as its protocol goes: who may publish, what has landed, what is seen.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use weir_connectors::{Manifest, PublishedBatch, Recovery};
use weir_spec::CommitMode;

/// How the system behind a sink keeps writers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One transaction for each batch, which raises the fences (SQLite).
    Late,
    /// As above; the fences are raised when a writer opens (PostgreSQL).
    Early,
    /// Renames of staged files, one by one.
    Files,
}

/// What a target can be told to neglect: a test that still passes would prove nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Attempts that were given up publish nothing.
    pub(crate) tombstones: bool,
    /// Nor do epochs that are over.
    pub(crate) fences: bool,
}

impl Rules {
    pub(crate) const ALL: Self = Self { tombstones: true, fences: true };
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Fenced,
    /// Somebody holds the lock: to be asked again.
    Busy,
    /// The target is not as it should be.
    Changed(String),
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub(crate) epoch: u64,
    pub(crate) slice: u32,
    pub(crate) attempt: u32,
}

/// By numbers that tell them apart.
pub(crate) type Rows = Vec<u64>;
type FileName = (u32, u64, usize);

#[derive(Debug)]
pub(crate) struct Target {
    kind: Kind,
    commit: CommitMode,
    rules: Rules,
    epoch: u64,
    /// By slice, the least attempt that may publish.
    least: BTreeMap<u32, u32>,
    /// What a reader sees once it is shown, of tables.
    batches: BTreeMap<(u32, u64), Rows>,
    /// Files by their names before and after they are renamed.
    staged: BTreeMap<u64, Rows>,
    files: BTreeMap<FileName, Rows>,
    is_shown: bool,
    /// Tasks that rename.
    holders: BTreeSet<u64>,
    /// By slice, the last attempt that the target was asked about, and the greatest epoch that came.
    given_up: BTreeMap<u32, u32>,
    seen_epoch: u64,
    /// What must never happen.
    pub(crate) violations: Vec<String>,
}

impl Target {
    pub(crate) fn new(kind: Kind, commit: CommitMode, rules: Rules) -> Self {
        Self {
            kind,
            commit,
            rules,
            epoch: 0,
            least: BTreeMap::new(),
            batches: BTreeMap::new(),
            staged: BTreeMap::new(),
            files: BTreeMap::new(),
            is_shown: false,
            holders: BTreeSet::new(),
            given_up: BTreeMap::new(),
            seen_epoch: 0,
            violations: Vec::new(),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn open(&mut self, writer: Writer) -> Result<(), Refusal> {
        match self.kind {
            Kind::Late => Ok(()),
            Kind::Early => {
                self.raise_epoch(writer.epoch)?;
                self.raise_attempt(writer.slice, writer.attempt)
            }
            Kind::Files => self.join(writer.epoch),
        }
    }

    /// `number` is the first name that the batch's files may have.
    pub(crate) fn stage(
        &mut self,
        writer: Writer,
        sequence: u64,
        rows: &[u64],
        checksum: u64,
        number: u64,
    ) -> Manifest {
        let (first, second) = rows.split_at(rows.len() / 2);
        let mut files = Vec::new();
        for (name, rows) in (number..).zip([first, second]) {
            if !rows.is_empty() {
                files.push(json!([name, rows.len()]));
                if self.kind == Kind::Files {
                    self.staged.insert(name, rows.to_vec());
                }
            }
        }
        let rows = rows.len() as u64;
        let Writer { epoch, slice, .. } = writer;
        // Only files say in their manifest what they hold; a table's writer knows its rows itself.
        Manifest { slice, sequence, rows, checksum, epoch, payload: Value::Array(files) }
    }

    /// One transaction.
    pub(crate) fn publish(
        &mut self,
        writer: Writer,
        manifest: &Manifest,
        rows: &[u64],
    ) -> Result<(), Refusal> {
        self.raise_epoch(writer.epoch)?;
        self.raise_attempt(writer.slice, writer.attempt)?;
        let key = (writer.slice, manifest.sequence);
        if !self.batches.contains_key(&key) {
            self.note_change(writer);
            self.batches.insert(key, rows.to_vec());
        }
        Ok(())
    }

    /// Begins to rename; nobody of another epoch may, until [`Self::release`].
    pub(crate) fn hold(&mut self, task: u64, epoch: u64) -> Result<(), Refusal> {
        self.check_epoch(epoch)?;
        self.holders.insert(task);
        Ok(())
    }

    pub(crate) fn release(&mut self, task: u64) {
        self.holders.remove(&task);
    }

    /// Renames the batch's file with this number; whether there are more.
    pub(crate) fn rename(
        &mut self,
        writer: Writer,
        manifest: &Manifest,
        number: usize,
    ) -> Result<bool, Refusal> {
        let files = files_of(manifest);
        if self.commit == CommitMode::Run {
            return Ok(false);
        }
        if let Some((staged, rows)) = files.get(number)
            && self.show(*staged, (writer.slice, manifest.sequence, number), *rows)?
        {
            self.note_change(writer);
        }
        Ok(number + 1 < files.len())
    }

    pub(crate) fn recover(
        &mut self,
        manifest: &Manifest,
        attempt: u32,
        epoch: u64,
    ) -> Result<Recovery, Refusal> {
        let slice = manifest.slice;
        let key = (slice, manifest.sequence);
        let answer = match self.kind {
            Kind::Late | Kind::Early => {
                self.raise_epoch(epoch)?;
                self.raise_attempt(slice, attempt + 1)?;
                match self.batches.contains_key(&key) {
                    true => Recovery::Published,
                    false => Recovery::Lost,
                }
            }
            Kind::Files => {
                self.join(epoch)?;
                self.recover_files(manifest)?
            }
        };
        let given_up = self.given_up.entry(slice).or_default();
        *given_up = attempt.max(*given_up);
        Ok(answer)
    }

    fn recover_files(&mut self, manifest: &Manifest) -> Result<Recovery, Refusal> {
        let key = |number| (manifest.slice, manifest.sequence, number);
        let files = files_of(manifest);
        let is_there = |(number, (staged, rows)): (usize, &(u64, usize))| {
            self.staged.contains_key(staged) || self.has_size(key(number), *rows)
        };
        if files.iter().enumerate().all(is_there) {
            if self.commit == CommitMode::Batch {
                for (number, (staged, rows)) in files.iter().enumerate() {
                    self.show(*staged, key(number), *rows)?;
                }
            }
            return Ok(Recovery::Published);
        }
        for (number, (staged, _)) in files.iter().enumerate() {
            self.staged.remove(staged);
            self.files.remove(&key(number));
        }
        Ok(Recovery::Lost)
    }

    /// `is_whole: false`: interrupted, as far as what is shown can be shown in parts.
    pub(crate) fn commit_run(
        &mut self,
        manifests: &[Manifest],
        epoch: u64,
        is_whole: bool,
    ) -> Result<(), Refusal> {
        if self.kind == Kind::Files {
            self.raise_files(epoch)?;
            for manifest in manifests {
                for (number, (staged, rows)) in files_of(manifest).into_iter().enumerate() {
                    self.show(staged, (manifest.slice, manifest.sequence, number), rows)?;
                    if !is_whole {
                        return Ok(());
                    }
                }
            }
            self.is_shown = true;
            return Ok(());
        }
        self.raise_epoch(epoch)?;
        for manifest in manifests {
            let key = (manifest.slice, manifest.sequence);
            if self.batches.get(&key).is_none_or(|rows| rows.len() as u64 != manifest.rows) {
                return Err(Refusal::Changed(format!("batch {key:?} is not staged")));
            }
        }
        if manifests.len() != self.batches.len() {
            return Err(Refusal::Changed("batches are staged that nobody knows".to_owned()));
        }
        self.is_shown = true;
        Ok(())
    }

    /// What a reader sees: slices with rows.
    pub(crate) fn visible(&self) -> Vec<(u32, &[u64])> {
        match (self.kind, self.commit) {
            (Kind::Files, _) => {
                self.files.iter().map(|((slice, ..), rows)| (*slice, rows.as_slice())).collect()
            }
            (_, CommitMode::Run) if !self.is_shown => Vec::new(),
            _ => self.batches.iter().map(|((slice, _), rows)| (*slice, rows.as_slice())).collect(),
        }
    }

    /// What it says of its batches itself.
    pub(crate) fn published(&self) -> Vec<PublishedBatch> {
        let mut counts: BTreeMap<(u32, u64), usize> = BTreeMap::new();
        match self.kind {
            Kind::Files => {
                for ((slice, sequence, _), rows) in &self.files {
                    *counts.entry((*slice, *sequence)).or_default() += rows.len();
                }
            }
            Kind::Late | Kind::Early => {
                counts.extend(self.batches.iter().map(|(key, rows)| (*key, rows.len())));
            }
        }
        let batch = |((slice, sequence), rows): ((u32, u64), usize)| PublishedBatch {
            slice,
            sequence,
            rows: rows as u64,
            checksum: None,
        };
        counts.into_iter().map(batch).collect()
    }

    /// Before the first row: the fence is raised.
    pub(crate) fn prepare(&mut self, epoch: u64) -> Result<(), Refusal> {
        match self.kind {
            Kind::Late | Kind::Early => self.raise_epoch(epoch),
            Kind::Files => self.join(epoch),
        }
    }

    /// Removes what is staged, unless somebody else may need it.
    pub(crate) fn clean_up(&mut self, epoch: u64) -> Result<(), Refusal> {
        self.check_epoch(epoch)?;
        self.staged.clear();
        Ok(())
    }

    fn show(&mut self, staged: u64, name: FileName, rows: usize) -> Result<bool, Refusal> {
        if !self.staged.contains_key(&staged) {
            return match self.has_size(name, rows) {
                true => Ok(false),
                false => Err(Refusal::Changed(format!("{staged} is gone, {name:?} not there"))),
            };
        }
        if self.files.contains_key(&name) {
            return Err(Refusal::Changed(format!("{name:?} exists already")));
        }
        let rows = self.staged.remove(&staged).expect("looked at above");
        self.files.insert(name, rows);
        Ok(true)
    }

    fn has_size(&self, name: FileName, rows: usize) -> bool {
        self.files.get(&name).is_some_and(|known| known.len() == rows)
    }

    fn check_epoch(&mut self, epoch: u64) -> Result<(), Refusal> {
        if epoch < self.epoch && self.rules.fences { Err(Refusal::Fenced) } else { Ok(()) }
    }

    fn raise_epoch(&mut self, epoch: u64) -> Result<(), Refusal> {
        self.check_epoch(epoch)?;
        self.epoch = self.epoch.max(epoch);
        self.seen_epoch = self.seen_epoch.max(epoch);
        Ok(())
    }

    fn raise_files(&mut self, epoch: u64) -> Result<(), Refusal> {
        if !self.holders.is_empty() {
            return Err(Refusal::Busy);
        }
        self.raise_epoch(epoch)
    }

    /// Waits only for writers of another epoch.
    fn join(&mut self, epoch: u64) -> Result<(), Refusal> {
        self.check_epoch(epoch)?;
        if self.epoch >= epoch { Ok(()) } else { self.raise_files(epoch) }
    }

    fn raise_attempt(&mut self, slice: u32, attempt: u32) -> Result<(), Refusal> {
        if !self.rules.tombstones {
            return Ok(());
        }
        let least = self.least.entry(slice).or_default();
        if *least > attempt {
            return Err(Refusal::Fenced);
        }
        *least = attempt;
        Ok(())
    }

    fn note_change(&mut self, Writer { epoch, slice, attempt }: Writer) {
        if self.given_up.get(&slice).is_some_and(|given_up| attempt <= *given_up) {
            self.violations.push(format!("attempt {attempt} at slice {slice} had been given up"));
        }
        if epoch < self.seen_epoch {
            self.violations.push(format!("epoch {epoch} was over, and has published"));
        }
    }
}

/// Names and numbers of rows.
fn files_of(manifest: &Manifest) -> Vec<(u64, usize)> {
    let files = manifest.payload.as_array().expect("as it was staged");
    let number = |file: &Value, index: usize| file[index].as_u64().expect("as it was staged");
    let size = |file: &Value| usize::try_from(number(file, 1)).expect("few rows");
    files.iter().map(|file| (number(file, 0), size(file))).collect()
}

/// That the simulations would notice what a target of theirs let through.
mod controls {
    use super::*;

    const FIRST: Writer = Writer { epoch: 2, slice: 0, attempt: 1 };

    /// A target whose first batch is given up, and published all the same.
    fn after_a_zombie(rules: Rules, given_up_in: u64) -> (Result<(), Refusal>, Vec<String>) {
        let mut target = Target::new(Kind::Late, CommitMode::Batch, rules);
        let manifest = target.stage(FIRST, 0, &[7], 0, 10);
        assert_eq!(target.recover(&manifest, FIRST.attempt, given_up_in), Ok(Recovery::Lost));
        (target.publish(FIRST, &manifest, &[7]), target.violations)
    }

    #[test]
    fn an_attempt_that_was_given_up_is_refused() {
        assert_eq!(after_a_zombie(Rules::ALL, 2), (Err(Refusal::Fenced), Vec::new()));
        assert_eq!(after_a_zombie(Rules::ALL, 3), (Err(Refusal::Fenced), Vec::new()));
    }

    #[test]
    fn an_attempt_that_was_given_up_and_is_let_through_is_noticed() {
        let rules = Rules { tombstones: false, ..Rules::ALL };
        let (published, violations) = after_a_zombie(rules, 2);
        assert_eq!(published, Ok(()));
        assert_eq!(violations, ["attempt 1 at slice 0 had been given up"]);
    }

    #[test]
    fn an_epoch_that_is_over_and_is_let_through_is_noticed() {
        let rules = Rules { fences: false, tombstones: false };
        let (published, violations) = after_a_zombie(rules, 3);
        assert_eq!(published, Ok(()));
        assert!(violations.contains(&"epoch 2 was over, and has published".to_owned()));
    }
}
