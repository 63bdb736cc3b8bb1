//! Opens the source or sink that a node of the pipeline describes.

use std::sync::Arc;

use weir_spec as spec;

use crate::{ConnectorContext, ConnectorError, Sink, Source};

/// Opens a source node. `name` is the node's name, for messages.
pub fn open_source(
    name: &str,
    source: &spec::Source,
    context: &ConnectorContext,
) -> Result<Arc<dyn Source>, ConnectorError> {
    let _ = (source, context);
    Err(ConnectorError::config(format!("source `{name}`: this type cannot be opened yet")))
}

/// Opens a sink node. `name` is the node's name, for messages.
pub fn open_sink(
    name: &str,
    sink: &spec::Sink,
    context: &ConnectorContext,
) -> Result<Arc<dyn Sink>, ConnectorError> {
    let _ = (sink, context);
    Err(ConnectorError::config(format!("sink `{name}`: this type cannot be opened yet")))
}
