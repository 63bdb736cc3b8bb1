//! All integration tests, in one binary: each file a subject.

mod layering;
