//! The messages and services of Weir's `.proto` files: generated code, nothing else.

#![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]

/// For clients.
pub mod v1 {
    tonic::include_proto!("weir.v1");
}

/// Between coordinators and executors.
pub mod internal {
    tonic::include_proto!("weir.internal.v1");
}

/// The paths of all methods.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// All of them, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weir.bin"));
