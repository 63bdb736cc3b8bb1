//! Rows between stages, as virtual tasks leave them: in the storage, or with an executor's process.

use std::collections::BTreeMap;

use weir_plan::{ExchangeOutput, Holder, StageId};

use crate::tests::target::Rows;

#[derive(Debug, Default)]
pub(super) struct Exchanges {
    files: BTreeMap<(String, StageId, String), Kept>,
}

#[derive(Debug)]
struct Kept {
    partitions: Vec<Rows>,
    /// The executor and its process.
    with: Option<(String, String)>,
}

impl Exchanges {
    pub(super) fn put(
        &mut self,
        run: &str,
        stage: StageId,
        file_id: &str,
        partitions: Vec<Rows>,
        holder: Option<&Holder>,
    ) {
        let with = holder.map(|holder| (holder.executor.clone(), holder.boot_id.clone()));
        let key = (run.to_owned(), stage, file_id.to_owned());
        self.files.insert(key, Kept { partitions, with });
    }

    /// A partition's rows in one output; `None` if its holder is gone.
    pub(super) fn read(
        &self,
        run: &str,
        stage: StageId,
        output: &ExchangeOutput,
        partition: u32,
    ) -> Option<&Rows> {
        let key = (run.to_owned(), stage, output.file_id.clone());
        self.files.get(&key)?.partitions.get(partition as usize)
    }

    /// An executor's process has ended.
    pub(super) fn lose(&mut self, executor: &str) {
        self.files.retain(|_, kept| kept.with.as_ref().is_none_or(|(name, _)| name != executor));
    }
}
