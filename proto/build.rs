//! Generates the code of the `.proto` files. The compiler is a crate: nothing has to be installed.

use std::error::Error;

const FILES: [&str; 7] = [
    "weir/internal/v1/executors.proto",
    "weir/internal/v1/raft.proto",
    "weir/v1/backfills.proto",
    "weir/v1/cluster.proto",
    "weir/v1/pipelines.proto",
    "weir/v1/runs.proto",
    "weir/v1/state.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let bytes = prost::Message::encode_to_vec(&descriptors);
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("weir.bin"), bytes)?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
