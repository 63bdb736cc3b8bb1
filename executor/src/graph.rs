//! The frozen stage graph of a run, as coordinators write it and all processes read it.

use std::io;
use std::path::PathBuf;

use weir_plan::StageGraph;

use crate::RunFolder;

impl RunFolder {
    /// The graph whose JSON has this hash (BLAKE3, hexadecimal).
    pub fn graph_file(&self, hash: &str) -> PathBuf {
        self.root().join("plan").join(format!("{hash}.json"))
    }

    /// Reads a graph, and makes sure that it is the one that was written under this hash.
    pub fn read_graph(&self, hash: &str) -> io::Result<StageGraph> {
        let damaged = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        let bytes = std::fs::read(self.graph_file(hash))?;
        if blake3::hash(&bytes).to_hex().as_str() != hash {
            return Err(damaged("its content does not fit its name".to_owned()));
        }
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
    }
}
