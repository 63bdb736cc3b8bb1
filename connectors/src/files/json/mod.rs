//! JSON files as a source: lines, a top-level array, or the records that a JSONPath finds.
//!
//! Lines and arrays stream. A document with another `records` path is loaded whole, up to
//! [`documents::MAX_DOCUMENT_BYTES`].

mod arrays;
mod documents;
mod lines;
mod reader;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use serde_json_path::JsonPath;
use weir_spec::{JsonFormat, JsonSource};

use crate::files::columns::{Columns, declared_in_file, names_of, partitions_of};
use crate::files::compression::{self, Codec};
use crate::files::csv::line_ranges;
use crate::files::listing::{SourceFile, list};
use crate::files::opened::OpenFile;
use crate::files::split::{FileSplit, encode_schema};
use crate::files::stream::{blocking, read_blocking};
use crate::records::{Json, infer_schema};
use crate::{
    ConnectorContext, ConnectorError, Position, ScanRequest, Source, SourceDescription,
    SourceStream, Split,
};
use reader::{JsonRange, Layout, open_records, read_records};

/// Smaller files are one split each.
const MIN_SPLIT_BYTES: u64 = 32 * 1024 * 1024;
const SAMPLE_RECORDS: usize = 1000;
const SAMPLE_BYTES: usize = 1024 * 1024;

/// An opened JSON node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct JsonFiles {
    name: String,
    context: ConnectorContext,
    source: Arc<JsonSource>,
    /// Unless the records are the elements of a top-level array.
    records: Option<Arc<JsonPath>>,
    min_split_bytes: u64,
}

impl JsonFiles {
    /// `name` is the node's name, for messages.
    pub fn new(
        name: &str,
        source: &JsonSource,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        if source.records.is_some() && source.format == JsonFormat::Lines {
            return Err(ConnectorError::config(format!(
                "source `{name}`: `records` finds records inside one document; it cannot be used \
                 with `format: lines`"
            )));
        }
        let records = match source.records.as_deref() {
            None | Some("$[*]") => None,
            Some(path) => Some(Arc::new(JsonPath::parse(path).map_err(|error| {
                let message = format!("source `{name}`: records path `{path}` is not JSONPath");
                ConnectorError::caused(crate::ErrorKind::Config, message, error)
            })?)),
        };
        Ok(Self {
            name: name.to_owned(),
            context: context.clone(),
            source: Arc::new(source.clone()),
            records,
            min_split_bytes: MIN_SPLIT_BYTES,
        })
    }

    #[cfg(test)]
    pub(crate) fn with_min_split_bytes(mut self, bytes: u64) -> Self {
        self.min_split_bytes = bytes;
        self
    }

    fn files(&self) -> Result<Vec<SourceFile>, ConnectorError> {
        let path = self.context.resolve(&self.source.path)?;
        list(&self.context, &path, self.source.hive_partitions)
            .map_err(|error| error.at_source(&self.name))
    }

    fn codec(&self, name: &str) -> Codec {
        Codec::of(name, self.source.compression)
    }

    /// How the records of a file are written; looks at its first bytes where nothing says so.
    fn layout(&self, file: &OpenFile, codec: Codec) -> Result<Layout, ConnectorError> {
        if let Some(records) = &self.records {
            return Ok(Layout::Document(Arc::clone(records)));
        }
        match self.source.format {
            JsonFormat::Lines => Ok(Layout::Lines),
            JsonFormat::Array => Ok(Layout::Array),
            JsonFormat::Auto if self.source.records.is_some() => Ok(Layout::Array),
            JsonFormat::Auto => {
                let mut bytes = compression::open(file, codec, 0)?;
                let mut head = Vec::new();
                compression::fill(&mut bytes, &mut head, 64 * 1024)
                    .map_err(|error| compression::read_error(file.path(), codec, error))?;
                let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
                let is_array = head.trim_ascii_start().first() == Some(&b'[');
                Ok(if is_array { Layout::Array } else { Layout::Lines })
            }
        }
    }

    fn file_columns(&self, files: &[SourceFile]) -> Result<SchemaRef, ConnectorError> {
        if let Some(declared) = &self.source.columns {
            return Ok(declared_in_file(declared, partitions_of(files)));
        }
        let mut sample = Vec::new();
        let mut bytes = 0;
        for file in files.iter().filter(|file| file.size > 0) {
            let codec = self.codec(&file.name);
            let opened = OpenFile::open(&file.path)?;
            let mut records = open_records(&JsonRange {
                name: file.name.clone(),
                codec,
                layout: self.layout(&opened, codec)?,
                file: opened,
                start: 0,
                resumed: false,
                end: None,
            })?;
            while sample.len() < SAMPLE_RECORDS && bytes < SAMPLE_BYTES {
                let Some(record) = records.next()? else { break };
                bytes += record.size;
                sample.extend(record.value.ok().filter(Json::is_object));
            }
            if sample.len() >= SAMPLE_RECORDS || bytes >= SAMPLE_BYTES {
                break;
            }
        }
        let schema = infer_schema(&sample);
        if schema.fields().is_empty() {
            return Err(ConnectorError::data(format!(
                "source `{}`: the columns cannot be found out, because the files hold no JSON \
                 objects; declare them with `columns`",
                self.name
            )));
        }
        Ok(Arc::new(schema))
    }

    fn plan_splits(&self, parallelism: usize) -> Result<Vec<Split>, ConnectorError> {
        let files = self.files()?;
        let file_columns = self.file_columns(&files)?;
        let schema = match &self.source.columns {
            Some(_) => None,
            None => Some(encode_schema(&file_columns)?),
        };
        let parallelism = parallelism.max(1) as u64;
        let total: u64 = files.iter().map(|file| file.size).sum();
        let target = (total / parallelism).max(1);
        let mut splits = Vec::new();
        for file in &files {
            let codec = self.codec(&file.name);
            let wanted = file.size.div_ceil(target).min(parallelism);
            let can_be_cut = codec == Codec::None
                && file.size >= self.min_split_bytes
                && wanted > 1
                && matches!(self.layout(&OpenFile::open(&file.path)?, codec)?, Layout::Lines);
            let starts =
                if can_be_cut { line_ranges(&file.path, file.size, wanted)? } else { vec![0] };
            for (index, start) in starts.iter().enumerate() {
                let end = starts.get(index + 1).copied().unwrap_or(file.size);
                let label = if starts.len() == 1 {
                    file.name.clone()
                } else {
                    format!("{} bytes {start}–{end}", file.name)
                };
                let split = FileSplit::new(file, *start, end, schema.clone());
                splits.push(split.into_split(label, end - start, None));
            }
        }
        Ok(splits)
    }
}

#[async_trait]
impl Source for JsonFiles {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        let this = self.clone();
        blocking(move || {
            let files = this.files()?;
            let file_columns = this.file_columns(&files)?;
            let declared = this.source.columns.as_ref();
            let columns = Columns::new(file_columns, declared, partitions_of(&files))?;
            let how = if declared.is_none() { "inferred" } else { "declared" };
            let mut notes = vec![format!("{} JSON files, columns {how}", files.len())];
            if !columns.partitions.is_empty() {
                notes.push(format!("partition columns: {}", names_of(&columns.partitions)));
            }
            Ok(SourceDescription {
                schema: columns.schema(),
                resumable: true,
                exact_predicates: Vec::new(),
                repeatable: false,
                notes,
            })
        })
        .await
    }

    async fn splits(
        &self,
        _request: &ScanRequest,
        parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        let this = self.clone();
        blocking(move || this.plan_splits(parallelism)).await
    }

    async fn open(
        &self,
        split: &Split,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        let (this, split) = (self.clone(), FileSplit::from_split(split)?);
        let (request, from) = (request.clone(), from.cloned());
        let limit = request.limit;
        let (range, projection, watch) = blocking(move || {
            let (file, watch) = split.open(&this.context)?;
            let declared = this.source.columns.as_ref();
            let file_columns = match (split.decode_schema()?, declared) {
                (Some(schema), _) => schema,
                (None, Some(declared)) => declared_in_file(declared, &split.partitions),
                (None, None) => {
                    return Err(ConnectorError::internal("a split has lost its columns"));
                }
            };
            let columns = Columns::new(file_columns, declared, &split.partitions)?;
            let projection = columns.project(&request, &split.partitions)?;
            let start = match &from {
                None => split.start,
                Some(position) => position.0.parse().map_err(|_| {
                    let message = format!("`{}` is no position in a JSON file", position.0);
                    ConnectorError::internal(message)
                })?,
            };
            let codec = this.codec(&split.path);
            let range = JsonRange {
                layout: this.layout(&file, codec)?,
                name: split.path,
                file,
                codec,
                start,
                resumed: from.is_some(),
                end: (codec == Codec::None).then_some(split.end),
            };
            Ok((range, projection, watch))
        })
        .await?;
        Ok(read_blocking(limit, watch, move |emitter| read_records(&range, &projection, emitter)))
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        let this = self.clone();
        blocking(move || {
            let files = this.files()?;
            let bytes: u64 = files.iter().map(|file| file.size).sum();
            Ok(format!("{} JSON files, {bytes} bytes, first {}", files.len(), files[0].name))
        })
        .await
    }
}
