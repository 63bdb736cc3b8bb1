//! The messages and services of Weir's `.proto` files: generated code, nothing else.

#![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]

/// Between coordinators and executors.
pub mod internal {
    tonic::include_proto!("weir.internal.v1");
}
