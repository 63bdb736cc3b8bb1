//! Which file is asked for over Flight, and where it is. Whoever asks may mean harm.

use std::path::{Component, Path, PathBuf};

use arrow_flight::Ticket;
use serde::{Deserialize, Serialize};
use weir_plan::StageId;

use crate::RunFolder;

/// One partition of one slice's output, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileTicket {
    /// Of the run; as in an assignment.
    pub(crate) run_folder: String,
    pub(crate) stage: StageId,
    pub(crate) file_id: String,
    pub(crate) partition: u32,
}

impl FileTicket {
    pub(crate) fn encode(&self) -> Ticket {
        Ticket::new(serde_json::to_vec(self).expect("tickets can be written as JSON"))
    }

    pub(crate) fn decode(ticket: &Ticket) -> Result<Self, String> {
        serde_json::from_slice(&ticket.ticket).map_err(|error| format!("not a ticket: {error}"))
    }

    /// The file below `root`, and never one beside it.
    pub(crate) fn path(&self, root: &Path) -> Result<PathBuf, String> {
        if !is_inside(&self.run_folder) {
            return Err(format!("`{}` is no folder of a run", self.run_folder));
        }
        let parts: Vec<&str> = self.file_id.split('-').collect();
        let is_number =
            |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if parts.len() != 3 || !parts.iter().all(is_number) {
            return Err(format!("`{}` is no output of a task", self.file_id));
        }
        let name = RunFolder::exchange_file(self.stage, &self.file_id, self.partition as usize);
        Ok(root.join(&self.run_folder).join(name))
    }
}

/// Whether a path from another process stays below the folder that it is relative to.
pub(crate) fn is_inside(path: &str) -> bool {
    let mut components = Path::new(path).components();
    !path.is_empty()
        && !path.contains('\0')
        && components.all(|component| matches!(component, Component::Normal(_)))
}
