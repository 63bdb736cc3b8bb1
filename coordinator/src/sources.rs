//! Asks the sources what they are, before planning.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use indexmap::IndexMap;
use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorError, ScanRequest, Source};
use weir_executor::{GivenSource, Systems};
use weir_plan::{Catalog, CatalogSource};
use weir_spec::{NodeName, PipelineSpec};

use crate::RunRequest;
use crate::retry::retrying;
use crate::since::{lag_fits, read_since};

/// A source that could not be asked.
#[derive(Debug)]
pub(crate) struct SourceFailure {
    pub(crate) node: NodeName,
    pub(crate) error: ConnectorError,
}

/// Describes and splits all sources at once. `spec`: rendered.
pub(crate) async fn describe_sources(
    spec: &PipelineSpec,
    watermarks: &BTreeMap<NodeName, String>,
    given: &IndexMap<NodeName, Arc<dyn Source>>,
    systems: &dyn Systems,
    parallelism: usize,
    stop: &CancellationToken,
) -> Result<Catalog, SourceFailure> {
    let described = spec.sources.iter().map(async |(node, source)| {
        let failed = |error| SourceFailure { node: node.clone(), error };
        let given = given.get(node);
        let opened = match given {
            Some(given) => Arc::clone(given),
            None => systems.open_source(node, source).map_err(failed)?,
        };
        let watermark = watermarks.get(node).map(String::as_str);
        let since = (source.incremental())
            .filter(|_| given.is_none())
            .and_then(|incremental| read_since(incremental, watermark));
        let request = ScanRequest { since: since.clone(), ..ScanRequest::default() };
        let description =
            retrying(&spec.retry, stop, || opened.describe()).await.map_err(failed)?;
        if let Some(incremental) = source.incremental().filter(|_| given.is_none()) {
            lag_fits(incremental, &description.schema).map_err(failed)?;
        }
        let splits = retrying(&spec.retry, stop, || opened.splits(&request, parallelism))
            .await
            .map_err(failed)?;
        let bounds =
            retrying(&spec.retry, stop, || opened.bounds(&splits)).await.map_err(failed)?;
        let source = source.clone();
        let source = CatalogSource { source, description, splits, bounds, since };
        Ok((node.clone(), source))
    });
    Ok(Catalog { sources: try_join_all(described).await?.into_iter().collect() })
}

/// Opens the rows that are given in place of sources, with the columns of the sources they stand
/// for.
pub(crate) async fn open_given(
    spec: &PipelineSpec,
    request: &RunRequest,
    systems: &dyn Systems,
) -> Result<IndexMap<NodeName, Arc<dyn Source>>, SourceFailure> {
    let mut given: IndexMap<NodeName, Arc<dyn Source>> = IndexMap::new();
    for (node, path) in &request.given {
        let failed = |error| SourceFailure { node: node.clone(), error };
        let Some(source) = spec.sources.get(node) else {
            return Err(failed(ConnectorError::config(
                "rows can only be given in place of a source".to_owned(),
            )));
        };
        let original = systems.open_source(node, source).map_err(failed)?;
        let opened = match original.describe().await {
            Ok(description) => GivenSource::with_schema(path, &description.schema),
            Err(error) if error.is_retryable() => GivenSource::inferred(path).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        };
        given.insert(node.clone(), Arc::new(opened));
    }
    Ok(given)
}
