//! The typed pipeline: what a file means once it has been found free of mistakes.
//!
//! Every value here is already validated: names exist, references resolve, durations parse.
//! Strings that may hold `{{ … }}` are [`TemplateText`]; they are rendered later, by `plan`
//! (`params`, `run`, `window`, `state`) and by the connector that opens a connection
//! (`env`, `secret`).

mod connection;
mod pipeline;
mod sink;
mod source;
mod transform;
mod value;

pub use connection::*;
pub use pipeline::*;
pub use sink::*;
pub use source::*;
pub use transform::*;
pub use value::*;
