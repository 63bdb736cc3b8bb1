//! The frozen stage graph of a run, as coordinators write it and all processes read it.

use std::io;

use weir_plan::StageGraph;

use crate::RunFolder;

impl RunFolder {
    /// The graph whose JSON has this hash (BLAKE3, hexadecimal).
    pub fn graph_file(hash: &str) -> String {
        format!("plan/{hash}.json")
    }

    /// Reads a graph, and makes sure that it is the one that was written under this hash.
    pub async fn read_graph(&self, hash: &str) -> io::Result<StageGraph> {
        let bytes = self.storage().get(&Self::graph_file(hash)).await?;
        Self::graph_in(&bytes, hash)
    }

    /// The graph that was written under this hash, out of its file.
    pub fn graph_in(bytes: &[u8], hash: &str) -> io::Result<StageGraph> {
        let damaged = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        if blake3::hash(bytes).to_hex().as_str() != hash {
            return Err(damaged("its content does not fit its name".to_owned()));
        }
        serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))
    }
}
