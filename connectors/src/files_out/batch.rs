//! The open batch of a writer: its data files, rolled by size and by partition.

use std::collections::HashMap;
use std::path::PathBuf;

use arrow::array::RecordBatch;

use super::durable::{remove_file, sync_folder};
use super::encode::{Format, OpenFile, ROW_GROUP_BYTES};
use super::partition::Partitioning;
use crate::ConnectorError;

/// Partitions whose files are open at once; the least recently used is closed for another.
const OPEN_FILES: usize = 64;

/// A file that is complete and durable.
#[derive(Clone, Debug)]
pub(super) struct FinishedFile {
    pub name: String,
    /// Relative folder below the target; empty without partitions.
    pub partition: String,
    pub rows: u64,
    pub bytes: u64,
}

/// Collects the rows of one batch. Dropping it before [`Self::finish`] removes its files.
pub(super) struct OpenBatch {
    folder: PathBuf,
    /// Of the batch, unique within the folder: names start with it.
    number: u64,
    format: Format,
    target_bytes: u64,
    open: HashMap<String, Slot>,
    finished: Vec<FinishedFile>,
    files_created: u64,
    clock: u64,
    is_complete: bool,
}

struct Slot {
    file: OpenFile,
    name: String,
    last_used: u64,
}

impl OpenBatch {
    pub(super) fn new(folder: PathBuf, number: u64, format: Format, target_bytes: u64) -> Self {
        Self {
            folder,
            number,
            format,
            target_bytes,
            open: HashMap::new(),
            finished: Vec::new(),
            files_created: 0,
            clock: 0,
            is_complete: false,
        }
    }

    pub(super) fn write(
        &mut self,
        partitioning: &Partitioning,
        rows: &RecordBatch,
    ) -> Result<(), ConnectorError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        for (partition, part) in partitioning.split(rows)? {
            self.clock += 1;
            if !self.open.contains_key(&partition) {
                self.make_room()?;
                let name =
                    format!("{}-{}.{}", self.number, self.files_created, self.format.suffix());
                self.files_created += 1;
                let file =
                    self.format.create(self.folder.join(&name), &partitioning.file_schema)?;
                self.open.insert(partition.clone(), Slot { file, name, last_used: 0 });
            }
            let slot = self.open.get_mut(&partition).expect("the file has been opened above");
            slot.last_used = self.clock;
            slot.file.write(&part)?;
            if slot.file.bytes() >= self.target_bytes {
                self.close(&partition)?;
            }
        }
        self.bound_memory()
    }

    /// Rows of a batch arrive sorted by nothing, so many partitions may be filling at once.
    fn bound_memory(&mut self) -> Result<(), ConnectorError> {
        loop {
            let mut total = 0;
            let mut largest: Option<(&String, usize)> = None;
            for (partition, slot) in &self.open {
                let bytes = slot.file.buffered_bytes();
                total += bytes;
                if largest.is_none_or(|(_, most)| bytes > most) {
                    largest = Some((partition, bytes));
                }
            }
            match largest {
                Some((partition, bytes)) if total > ROW_GROUP_BYTES && bytes > 0 => {
                    let partition = partition.clone();
                    let slot = self.open.get_mut(&partition).expect("it has just been seen");
                    slot.file.flush()?;
                }
                _ => return Ok(()),
            }
        }
    }

    fn make_room(&mut self) -> Result<(), ConnectorError> {
        if self.open.len() < OPEN_FILES {
            return Ok(());
        }
        let oldest = self
            .open
            .iter()
            .min_by_key(|(_, slot)| slot.last_used)
            .map(|(partition, _)| partition.clone());
        match oldest {
            Some(partition) => self.close(&partition),
            None => Ok(()),
        }
    }

    fn close(&mut self, partition: &str) -> Result<(), ConnectorError> {
        let Some((partition, slot)) = self.open.remove_entry(partition) else { return Ok(()) };
        let rows = slot.file.rows;
        // Noted first, so that a file that cannot be completed is removed with the batch.
        self.finished.push(FinishedFile { name: slot.name, partition, rows, bytes: 0 });
        let bytes = slot.file.finish()?;
        self.finished.last_mut().expect("pushed above").bytes = bytes;
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.finished.iter().map(|file| file.bytes).sum::<u64>()
            + self.open.values().map(|slot| slot.file.bytes()).sum::<u64>()
    }

    /// Completes all files and makes them and their folder durable.
    pub(super) fn finish(&mut self) -> Result<Vec<FinishedFile>, ConnectorError> {
        let mut partitions: Vec<String> = self.open.keys().cloned().collect();
        partitions.sort();
        for partition in partitions {
            self.close(&partition)?;
        }
        if !self.finished.is_empty() {
            sync_folder(&self.folder)?;
        }
        self.is_complete = true;
        Ok(self.finished.clone())
    }
}

impl Drop for OpenBatch {
    fn drop(&mut self) {
        if self.is_complete {
            return;
        }
        // What cannot be removed here is removed with the run's staging.
        for slot in self.open.values() {
            let _ = remove_file(slot.file.path());
        }
        for file in &self.finished {
            let _ = remove_file(&self.folder.join(&file.name));
        }
    }
}
