//! Generates the code of the `.proto` files. The compiler is a crate: nothing has to be installed.

use std::error::Error;

const FILES: [&str; 8] = [
    "weir/internal/v1/executors.proto",
    "weir/internal/v1/raft.proto",
    "weir/v1/backfills.proto",
    "weir/v1/cluster.proto",
    "weir/v1/dead_letters.proto",
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
    let methods: Vec<String> = (descriptors.file.iter())
        .flat_map(|file| file.service.iter().map(move |service| (file.package(), service)))
        .flat_map(|(package, service)| {
            let of = move |method: &str| format!("/{package}.{}/{method}", service.name());
            service.method.iter().map(move |method| of(method.name()))
        })
        .collect();
    std::fs::write(out.join("methods.rs"), format!("&{methods:?}"))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
