//! What opens the sources and sinks of runs.

use std::fmt;
use std::sync::Arc;

use weir_connectors::ConnectorContext;
use weir_executor::{Registry, Systems};

type Make = dyn Fn(&ConnectorContext) -> Arc<dyn Systems> + Send + Sync;

/// Makes the systems of a run: its relative paths start at a folder of its own.
#[derive(Clone)]
pub(super) struct SystemsMaker(Arc<Make>);

impl SystemsMaker {
    /// The connectors of this build.
    pub(super) fn registry() -> Self {
        Self(Arc::new(|context| Arc::new(Registry { context: context.clone() })))
    }

    /// The same for all runs.
    #[cfg(test)]
    pub(super) fn of(systems: Arc<dyn Systems>) -> Self {
        Self(Arc::new(move |_| Arc::clone(&systems)))
    }

    pub(super) fn make(&self, context: &ConnectorContext) -> Arc<dyn Systems> {
        (self.0)(context)
    }
}

impl fmt::Debug for SystemsMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemsMaker").finish_non_exhaustive()
    }
}
