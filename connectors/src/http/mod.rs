//! REST APIs: pages of JSON records.
//!
//! ```text
//! PageRequest ─▶ fetch (rate limit, credentials, retries) ─▶ page (JSON, records) ─▶ batches
//!      ▲                                                        │
//!      └───────────── cursor, link, number, offset ◀────────────┘
//! ```
//!
//! One split: pages are read one after the other. The last batch of each page carries a position,
//! which names the next page and never holds a credential. Reading on is exact as long as the API
//! gives the same page for the same cursor, link, number or offset.
//!
//! Columns are the declared ones, or inferred from the first 1,000 records (at most ten pages); they
//! are frozen with the split, so that every attempt reads the same types. A record that does not fit
//! is rejected, not read half.

mod auth;
mod connection;
mod fetch;
mod message;
mod page;
mod pagination;
mod reader;
mod resource;
mod since;

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use futures::stream::{self, TryStreamExt as _};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use weir_spec as spec;

use self::connection::Api;
use self::fetch::{Body, Request};
use self::pagination::Progress;
use self::reader::{Page, Reader};
use self::resource::Resource;
use self::since::{SinceFilter, cursor_column};
use crate::records::{Json, decode_records, infer_schema};
use crate::types::arrow_field;
use crate::{
    ConnectorContext, ConnectorError, ErrorKind, Position, ScanRequest, Source, SourceBatch,
    SourceDescription, SourceStream, Split,
};

/// Pages with more records are cut.
const BATCH_ROWS: usize = 8192;
/// Columns are inferred from this many records …
const INFERENCE_RECORDS: usize = 1000;
/// … or pages, whichever comes first.
const INFERENCE_PAGES: usize = 10;

/// Opens an HTTP source node. Templates are rendered when the first request is made.
pub fn open(name: &str, source: &spec::HttpSource, context: &ConnectorContext) -> Arc<dyn Source> {
    Arc::new(HttpSource {
        name: name.to_owned(),
        node: source.clone(),
        context: context.clone(),
        resource: std::sync::OnceLock::new(),
        description: OnceCell::new(),
    })
}

struct HttpSource {
    name: String,
    node: spec::HttpSource,
    context: ConnectorContext,
    resource: std::sync::OnceLock<Arc<Resource>>,
    description: OnceCell<SourceDescription>,
}

impl std::fmt::Debug for HttpSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpSource({})", self.name)
    }
}

/// What a split keeps: the columns, as an IPC schema message.
#[derive(Serialize, Deserialize)]
struct SplitPayload {
    schema: String,
}

impl HttpSource {
    fn resource(&self) -> Result<Arc<Resource>, ConnectorError> {
        if let Some(resource) = self.resource.get() {
            return Ok(Arc::clone(resource));
        }
        let resource = Arc::new(Resource::open(&self.node, &self.context)?);
        Ok(Arc::clone(self.resource.get_or_init(|| resource)))
    }

    /// `GET /v2/items`, as the file has it: rendered values stay out of the plan.
    fn written_label(&self) -> String {
        let method = match self.node.method {
            spec::HttpMethod::Get => "GET",
            spec::HttpMethod::Post => "POST",
        };
        format!("{method} {}", self.node.path.as_str())
    }

    async fn find_description(&self) -> Result<SourceDescription, ConnectorError> {
        let resource = self.resource()?;
        let mut notes = vec![format!("{}, {}", self.written_label(), resource.pager.describe())];
        let schema = match &self.node.columns {
            Some(columns) => Schema::new(
                columns.iter().map(|(name, kind)| arrow_field(name, kind)).collect::<Vec<_>>(),
            ),
            None => {
                let records = self.sample(&resource).await?;
                notes.push(format!("columns inferred from the first {} records", records.len()));
                infer_schema(&records)
            }
        };
        if let Some(incremental) = &self.node.incremental {
            cursor_column(&schema, &incremental.cursor)?;
            notes.push(match &incremental.param {
                Some(parameter) => format!("the API filters by its parameter {parameter}"),
                None => format!(
                    "all pages are read, rows filtered by {} afterwards",
                    incremental.cursor
                ),
            });
        }
        Ok(SourceDescription {
            schema: Arc::new(schema),
            resumable: true,
            exact_predicates: Vec::new(),
            repeatable: false,
            notes,
        })
    }

    /// The first records, from the initial watermark on, for inference only.
    async fn sample(&self, resource: &Arc<Resource>) -> Result<Vec<Json>, ConnectorError> {
        let since = self.node.incremental.as_ref().and_then(|since| since.initial.clone());
        let mut reader = Reader::new(Arc::clone(resource), since, None);
        let mut records = Vec::new();
        for _ in 0..INFERENCE_PAGES {
            if records.len() >= INFERENCE_RECORDS {
                break;
            }
            let Some(page) = reader.next_page().await? else { break };
            records.extend(page.records);
        }
        records.truncate(INFERENCE_RECORDS);
        if records.is_empty() {
            return Err(ConnectorError::data(format!(
                "{} has no records from which columns could be inferred: declare them under \
                 `columns`",
                resource.label()
            )));
        }
        if let Some(other) = records.iter().find(|record| !record.is_object()) {
            let text = message::excerpt(other.to_string().as_bytes(), &resource.api.redactor);
            return Err(ConnectorError::data(format!(
                "{}: a record is not an object but {text}: let `records` lead to objects",
                resource.label(),
            )));
        }
        Ok(records)
    }
}

#[async_trait]
impl Source for HttpSource {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        self.description.get_or_try_init(|| self.find_description()).await.cloned()
    }

    async fn splits(
        &self,
        _request: &ScanRequest,
        _parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        let schema = self.describe().await?.schema;
        let payload = SplitPayload { schema: encode_schema(&schema)? };
        Ok(vec![Split {
            label: self.written_label(),
            payload: serde_json::to_value(payload).expect("a payload has only string keys"),
            weight: 1,
            estimated_rows: None,
        }])
    }

    async fn open(
        &self,
        split: &Split,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        let resource = self.resource()?;
        let payload: SplitPayload = serde_json::from_value(split.payload.clone())
            .map_err(|cause| ConnectorError::internal(format!("broken split: {cause}")))?;
        let schema = decode_schema(&payload.schema)?;
        let columns = request
            .columns
            .as_ref()
            .map(|names| names.iter().map(|name| schema.index_of(name)).collect())
            .transpose()
            .map_err(|cause| ConnectorError::internal(format!("unknown column: {cause}")))?;
        let filter = match (&self.node.incremental, &request.since) {
            (Some(incremental), Some(since)) => Some(SinceFilter::new(
                &schema,
                &incremental.cursor,
                since,
                incremental.param.is_some(),
            )?),
            _ => None,
        };
        let reading = Reading {
            reader: Reader::new(
                resource,
                request.since.clone(),
                from.map(Progress::parse).transpose()?,
            ),
            schema,
            columns,
            filter,
            remaining: request.limit,
            ready: VecDeque::new(),
        };
        Ok(stream::try_unfold(reading, async |mut reading: Reading| {
            Ok(reading.next_batch().await?.map(|batch| (batch, reading)))
        })
        .into_stream()
        .boxed())
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        check(&self.resource()?.api).await
    }
}

/// Opens an HTTP connection and asks for its base URL: `weir connection test`.
pub async fn check_connection(
    connection: &spec::ConnectionRef,
    context: &ConnectorContext,
) -> Result<String, ConnectorError> {
    check(&Api::open(connection, context)?).await
}

async fn check(api: &Api) -> Result<String, ConnectorError> {
    let label =
        format!("GET {}{}", api.base_url.origin().ascii_serialization(), api.base_url.path());
    let request = Request {
        method: Method::GET,
        url: api.base_url.clone(),
        headers: HeaderMap::new(),
        body: Body::None,
        label: label.clone(),
    };
    match api.fetch(&request, |answer| Ok(answer.status)).await {
        Ok(status) => Ok(format!("{label} answered {status}")),
        // Few APIs have anything at their base URL.
        Err(error) if error.kind == ErrorKind::NotFound => Ok(format!(
            "{label} answered 404 Not Found: the server is reached; nothing is at its base URL"
        )),
        Err(error) => Err(error),
    }
}

/// A reading under way.
struct Reading {
    reader: Reader,
    /// All columns.
    schema: SchemaRef,
    /// Indices of the requested ones.
    columns: Option<Vec<usize>>,
    filter: Option<SinceFilter>,
    /// Rows that are still wanted.
    remaining: Option<u64>,
    /// The rest of the page at hand.
    ready: VecDeque<SourceBatch>,
}

impl Reading {
    async fn next_batch(&mut self) -> Result<Option<SourceBatch>, ConnectorError> {
        if self.remaining == Some(0) {
            return Ok(None);
        }
        if self.ready.is_empty() {
            let Some(page) = self.reader.next_page().await? else { return Ok(None) };
            self.cut(page)?;
        }
        let Some(mut batch) = self.ready.pop_front() else { return Ok(None) };
        if let Some(remaining) = &mut self.remaining {
            let rows = usize::try_from(*remaining).unwrap_or(usize::MAX);
            if batch.rows.num_rows() > rows {
                batch.rows = batch.rows.slice(0, rows);
            }
            *remaining -= batch.rows.num_rows() as u64;
        }
        Ok(Some(batch))
    }

    /// A page without records becomes one empty batch, for the sake of its position.
    fn cut(&mut self, page: Page) -> Result<(), ConnectorError> {
        let mut records = page.records.into_iter();
        loop {
            let chunk: Vec<Json> = records.by_ref().take(BATCH_ROWS).collect();
            let is_last = records.len() == 0;
            let (rows, mut rejected) = decode_records(&self.schema, chunk);
            for row in &mut rejected {
                row.reason = format!("{}: {}", page.label, row.reason);
            }
            let position = is_last.then(|| page.progress.position());
            let rows = self.select(rows)?;
            self.ready.push_back(SourceBatch { rows, rejected, position });
            if is_last {
                return Ok(());
            }
        }
    }

    fn select(&self, rows: RecordBatch) -> Result<RecordBatch, ConnectorError> {
        let rows = match &self.filter {
            Some(filter) => filter.apply(&rows)?,
            None => rows,
        };
        match &self.columns {
            Some(columns) => Ok(rows.project(columns)?),
            None => Ok(rows),
        }
    }
}

fn encode_schema(schema: &Schema) -> Result<String, ConnectorError> {
    let mut bytes = Vec::new();
    arrow::ipc::writer::StreamWriter::try_new(&mut bytes, schema)?.finish()?;
    Ok(STANDARD.encode(bytes))
}

fn decode_schema(text: &str) -> Result<SchemaRef, ConnectorError> {
    let bytes = STANDARD
        .decode(text)
        .map_err(|cause| ConnectorError::internal(format!("broken split: {cause}")))?;
    Ok(arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None)?.schema())
}
