//! From text to a tree whose every key and value knows where it stands.

mod position;
mod tree;

pub(crate) use position::{SourceText, Span};
pub(crate) use tree::{Entry, Map, Node, Scalar, Value, parse_tree};
