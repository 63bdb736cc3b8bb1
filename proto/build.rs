//! Generates the code of the `.proto` files. The compiler is a crate: nothing has to be installed.

use std::error::Error;

const FILES: [&str; 1] = ["weir/internal/v1/raft.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
