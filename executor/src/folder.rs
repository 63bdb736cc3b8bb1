//! Where the files of a run are. One place knows the names.

use std::io;

use bytes::Bytes;
use weir_plan::StageId;
use weir_spec::NodeName;

use crate::storage::Storage;

/// The folder of one run. Names are relative to it.
///
/// ```text
/// progress/<stage>/<slice>/<sequence>-<attempt>.json    a Commit, written before its intent
/// dead-letters/<node>/<stage>-<slice>-<sequence>-<attempt>.jsonl
/// exchange/<stage>/<file id>/<partition>.arrow          Arrow IPC files, LZ4
/// spill/                                                of running operators; in one process only
/// ```
///
/// Names that end in `.tmp` belong to a running or dead task and mean nothing. No two attempts share a
/// name: one that was given up may be paused, and write its files when it wakes up. The ledger says
/// whose a batch is; the files of other attempts mean nothing either.
#[derive(Clone, Debug)]
pub struct RunFolder {
    storage: Storage,
}

impl RunFolder {
    /// All outputs of whole stages.
    pub const EXCHANGE: &str = "exchange";
    /// The rejected rows of all nodes.
    pub const DEAD_LETTERS: &str = "dead-letters";
    pub const SPILL: &str = "spill";

    pub fn new(storage: Storage) -> Self {
        Self { storage }
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The checkpoints of a slice.
    pub fn progress(stage: StageId, slice: u32) -> String {
        format!("progress/{stage}/{slice}")
    }

    /// The checkpoint of one batch, as an attempt has written it.
    pub fn progress_file(stage: StageId, slice: u32, sequence: u64, attempt: u32) -> String {
        let name = BatchFile { sequence, attempt }.name("", "json");
        format!("{}/{name}", Self::progress(stage, slice))
    }

    /// The rejected rows of a node.
    pub fn dead_letters_of(node: &NodeName) -> String {
        format!("{}/{node}", Self::DEAD_LETTERS)
    }

    /// The rows that a node has rejected in one batch, as an attempt has written them. Whole stages
    /// have one batch, 0.
    pub fn dead_letter_file(
        node: &NodeName,
        stage: StageId,
        slice: u32,
        sequence: u64,
        attempt: u32,
    ) -> String {
        let name = BatchFile { sequence, attempt }.name(&format!("{stage}-{slice}-"), "jsonl");
        format!("{}/{name}", Self::dead_letters_of(node))
    }

    /// All outputs of a whole stage, one folder for each attempt that finished.
    pub fn exchange(stage: StageId) -> String {
        format!("{}/{stage}", Self::EXCHANGE)
    }

    /// An attempt's output.
    pub fn exchange_output(stage: StageId, file_id: &str) -> String {
        format!("{}/{file_id}", Self::exchange(stage))
    }

    /// One partition of it.
    pub fn exchange_file(stage: StageId, file_id: &str, partition: usize) -> String {
        format!("{}/{partition}.arrow", Self::exchange_output(stage, file_id))
    }

    /// A file of an attempt that the ledger has accepted, by its name of today or of earlier versions.
    /// `NotFound` if there is neither.
    pub async fn get_accepted(
        &self,
        attempt: u32,
        name: impl Fn(u32) -> String,
    ) -> io::Result<Bytes> {
        match self.storage.get(&name(attempt)).await {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && attempt != 0 => {
                // The error is about the name of today.
                self.storage.get(&name(0)).await.map_err(|former| match former.kind() {
                    io::ErrorKind::NotFound => cause,
                    _ => former,
                })
            }
            read => read,
        }
    }
}

/// What the end of a file's name says: `<sequence>-<attempt>.<extension>`. Attempt 0 is for names of
/// earlier versions, `<sequence>.<extension>`; attempts begin at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BatchFile {
    sequence: u64,
    attempt: u32,
}

impl BatchFile {
    fn name(self, prefix: &str, extension: &str) -> String {
        let Self { sequence, attempt } = self;
        match attempt {
            0 => format!("{prefix}{sequence}.{extension}"),
            _ => format!("{prefix}{sequence}-{attempt}.{extension}"),
        }
    }

    /// What is between the numbers and the extension tells unfinished files apart.
    fn parse(name: &str, prefix: &str, extension: &str) -> Option<Self> {
        let name = name.strip_prefix(prefix)?.strip_suffix(extension)?.strip_suffix('.')?;
        let numbers = name.split('.').next()?;
        let (sequence, attempt) = numbers.split_once('-').unwrap_or((numbers, "0"));
        Some(Self { sequence: sequence.parse().ok()?, attempt: attempt.parse().ok()? })
    }
}

/// Whether a file belongs to an attempt before `start` and to a batch that was not committed when that
/// began. What later attempts have written is not theirs to judge.
pub(crate) fn is_left_over(
    name: &str,
    prefix: &str,
    extension: &str,
    (attempt, next_sequence): (u32, u64),
) -> bool {
    BatchFile::parse(name, prefix, extension)
        .is_some_and(|file| file.attempt < attempt && file.sequence >= next_sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_attempt_has_written_which_batch() {
        let node = NodeName::new("valid");
        let name = RunFolder::dead_letter_file(&node, StageId(1), 2, 30, 4);
        assert_eq!(name, "dead-letters/valid/1-2-30-4.jsonl");
        let name = RunFolder::progress_file(StageId(1), 2, 30, 4);
        assert_eq!(name, "progress/1/2/30-4.json");
        let file = Some(BatchFile { sequence: 30, attempt: 4 });
        assert_eq!(BatchFile::parse("1-2-30-4.jsonl", "1-2-", "jsonl"), file);
        assert_eq!(BatchFile::parse("30-4.json", "", "json"), file);
        for other in ["1-3-30-4.jsonl", "1-2-30-4.tmp", "1-2.4.tmp"] {
            assert_eq!(BatchFile::parse(other, "1-2-", "jsonl"), None, "{other}");
        }
    }

    #[test]
    fn names_of_earlier_versions_are_those_of_attempt_0() {
        let name = RunFolder::progress_file(StageId(1), 2, 30, 0);
        assert_eq!(name, "progress/1/2/30.json");
        assert_eq!(
            BatchFile::parse("30.json", "", "json"),
            Some(BatchFile { sequence: 30, attempt: 0 })
        );
    }

    #[test]
    fn only_what_earlier_attempts_did_not_commit_is_left_over() {
        let found = |name| is_left_over(name, "1-2-", "jsonl", (4, 30));
        assert!(found("1-2-30-3.jsonl") && found("1-2-31-1.jsonl") && found("1-2-30.jsonl"));
        assert!(!found("1-2-29-3.jsonl"), "committed");
        assert!(is_left_over("30-3.6ab1.tmp", "", "tmp", (4, 30)), "was never finished");
        assert!(!found("1-2-30-4.jsonl") && !found("1-2-30-5.jsonl"), "of a later attempt");
    }
}
