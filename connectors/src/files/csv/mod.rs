//! CSV files as a source.
//!
//! Rows are checked only as far as they are read: the number of cells, UTF-8 and NUL bytes of every
//! row, the values of the requested columns.

mod boundary;
mod cells;
mod dialect;
mod header;
mod infer;
mod ranges;
pub(crate) mod reader;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use async_trait::async_trait;
use weir_spec::CsvSource;

use crate::files::columns::{Columns, declared_in_file, names_of, partitions_of};
use crate::files::compression::Codec;
use crate::files::listing::{SourceFile, list};
use crate::files::opened::OpenFile;
use crate::files::split::{FileSplit, encode_schema};
use crate::files::stream::{blocking, read_blocking};
use crate::{
    ConnectorContext, ConnectorError, Position, ScanRequest, Source, SourceDescription,
    SourceStream, Split,
};
use dialect::Dialect;
use header::{Head, SAMPLE_RECORDS, read_head};
use infer::Inferred;
pub(crate) use ranges::line_ranges;
use reader::{CsvRange, read_range};

/// Smaller files are one split each.
const MIN_SPLIT_BYTES: u64 = 32 * 1024 * 1024;
/// Files whose first records decide about types.
const SAMPLE_FILES: usize = 8;

/// An opened CSV node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CsvFiles {
    name: String,
    context: ConnectorContext,
    source: Arc<CsvSource>,
    dialect: Dialect,
    min_split_bytes: u64,
}

impl CsvFiles {
    /// `name` is the node's name, for messages.
    pub fn new(
        name: &str,
        source: &CsvSource,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        Ok(Self {
            name: name.to_owned(),
            context: context.clone(),
            dialect: Dialect::new(source)?,
            source: Arc::new(source.clone()),
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

    fn file_columns(&self, files: &[SourceFile]) -> Result<SchemaRef, ConnectorError> {
        match &self.source.columns {
            Some(declared) => Ok(declared_in_file(declared, partitions_of(files))),
            None => self.infer(files),
        }
    }

    /// Names from the first file that has any bytes, types from the first records of some files.
    fn infer(&self, files: &[SourceFile]) -> Result<SchemaRef, ConnectorError> {
        let mut names: Option<(String, Vec<String>)> = None;
        let mut types: Vec<Inferred> = Vec::new();
        let mut records_left = SAMPLE_RECORDS;
        for file in files.iter().filter(|file| file.size > 0).take(SAMPLE_FILES) {
            let head = read_head(
                &OpenFile::open(&file.path)?,
                self.codec(&file.name),
                &self.dialect,
                true,
            )?;
            let file_names = match &head.names {
                Some(names) => names.clone(),
                None if self.dialect.header => continue,
                None => {
                    let Some(first) = head.records.first() else { continue };
                    (1..=first.len()).map(|number| format!("column_{number}")).collect()
                }
            };
            let (_, names) = names.get_or_insert_with(|| (file.name.clone(), file_names.clone()));
            types.resize(names.len(), Inferred::Nothing);
            let indices: Vec<Option<usize>> = names
                .iter()
                .map(|name| file_names.iter().position(|found| found == name))
                .collect();
            let whole = head.records.iter().filter(|record| record.len() == file_names.len());
            for record in whole.take(records_left) {
                records_left -= 1;
                for (seen, index) in types.iter_mut().zip(&indices) {
                    let cell = index.map_or("", |index| record[index].as_str());
                    if !self.dialect.is_null(cell) && !cell.is_empty() {
                        *seen = seen.with(cell);
                    }
                }
            }
            if records_left == 0 {
                break;
            }
        }
        let Some((file_name, names)) = names else {
            return Err(ConnectorError::data(format!(
                "source `{}`: the columns cannot be found out, because the files are empty; declare \
                 them with `columns`",
                self.name
            )));
        };
        if let Some(twice) =
            names.iter().enumerate().find(|(index, name)| names[..*index].contains(name))
        {
            return Err(ConnectorError::data(format!(
                "the header of {file_name} names column `{}` twice; rename one, or declare all \
                 columns with `columns` and `header: false`",
                twice.1
            )));
        }
        let fields: Fields = names
            .iter()
            .zip(&types)
            .map(|(name, inferred)| Field::new(name, inferred.data_type(), true))
            .collect();
        Ok(Arc::new(Schema::new(fields)))
    }

    fn plan_splits(&self, parallelism: usize) -> Result<Vec<Split>, ConnectorError> {
        let files = self.files()?;
        let file_columns = self.file_columns(&files)?;
        let schema = match &self.source.columns {
            Some(_) => None,
            None => Some(encode_schema(&file_columns)?),
        };
        let total: u64 = files.iter().map(|file| file.size).sum();
        let target = (total / parallelism.max(1) as u64).max(1);
        let row_bytes = self.row_bytes(&files)?;
        let mut splits = Vec::new();
        for file in &files {
            let codec = self.codec(&file.name);
            let wanted = file.size.div_ceil(target).min(parallelism.max(1) as u64);
            let is_large = codec == Codec::None && file.size >= self.min_split_bytes;
            let starts = if is_large && wanted > 1 {
                let head = read_head(&OpenFile::open(&file.path)?, codec, &self.dialect, false)?;
                ranges::range_starts(&file.path, &self.dialect, head.data_start, file.size, wanted)?
            } else {
                vec![0]
            };
            for (index, start) in starts.iter().enumerate() {
                let end = starts.get(index + 1).copied().unwrap_or(file.size);
                let label = if starts.len() == 1 {
                    file.name.clone()
                } else {
                    format!("{} bytes {start}–{end}", file.name)
                };
                let rows =
                    row_bytes.filter(|_| codec == Codec::None).map(|bytes| (end - start) / bytes);
                splits.push(FileSplit::new(file, *start, end, schema.clone()).into_split(
                    label,
                    end - start,
                    rows,
                ));
            }
        }
        Ok(splits)
    }

    /// Average bytes of a record, from the first file that is not compressed.
    fn row_bytes(&self, files: &[SourceFile]) -> Result<Option<u64>, ConnectorError> {
        let plain =
            files.iter().find(|file| file.size > 0 && self.codec(&file.name) == Codec::None);
        let Some(file) = plain else { return Ok(None) };
        let head = read_head(&OpenFile::open(&file.path)?, Codec::None, &self.dialect, true)?;
        let records = head.records.len() as u64;
        Ok((records > 0).then(|| (head.record_bytes / records).max(1)))
    }

    fn range(
        &self,
        split: &FileSplit,
        file: OpenFile,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<CsvRange, ConnectorError> {
        let codec = self.codec(&split.path);
        let file_columns = match (split.decode_schema()?, &self.source.columns) {
            (Some(schema), _) => schema,
            (None, Some(declared)) => declared_in_file(declared, &split.partitions),
            (None, None) => return Err(ConnectorError::internal("a split has lost its columns")),
        };
        let columns = Columns::new(
            Arc::clone(&file_columns),
            self.source.columns.as_ref(),
            &split.partitions,
        )?;
        let projection = columns.project(request, &split.partitions)?;
        let head = read_head(&file, codec, &self.dialect, false)?;
        let file_schema = cells_of(&split.path, &head, &file_columns)?;
        let indices = projection
            .in_file
            .fields()
            .iter()
            .map(|field| {
                file_schema.index_of(field.name()).map_err(|_| {
                    ConnectorError::internal(format!(
                        "{} has lost column {}",
                        split.path,
                        field.name()
                    ))
                })
            })
            .collect::<Result<_, _>>()?;
        let start = match from {
            None => split.start,
            Some(position) => position.0.parse().map_err(|_| {
                ConnectorError::internal(format!("`{}` is no position in a CSV file", position.0))
            })?,
        };
        Ok(CsvRange {
            name: split.path.clone(),
            file,
            codec,
            dialect: self.dialect.clone(),
            start: start.max(head.data_start),
            end: (codec == Codec::None).then_some(split.end),
            file_schema,
            indices,
            projection,
        })
    }
}

/// A field for every cell of a file: by name where it has a header, else by place.
fn cells_of(
    file_name: &str,
    head: &Head,
    columns: &SchemaRef,
) -> Result<SchemaRef, ConnectorError> {
    let Some(names) = &head.names else { return Ok(Arc::clone(columns)) };
    for field in columns.fields() {
        let count = names.iter().filter(|name| *name == field.name()).count();
        if count != 1 {
            let problem = if count == 0 { "does not have" } else { "has more than one" };
            return Err(ConnectorError::data(format!(
                "the header of {file_name} {problem} column `{}`; it has: {}. Correct `columns`, or \
                 set `header: false` if the first line is data",
                field.name(),
                names.join(", ")
            )));
        }
    }
    let fields: Fields = names
        .iter()
        .map(|name| match columns.field_with_name(name) {
            Ok(field) => field.clone(),
            Err(_) => Field::new(name, DataType::Utf8, true),
        })
        .collect();
    Ok(Arc::new(Schema::new(fields)))
}

#[async_trait]
impl Source for CsvFiles {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        let this = self.clone();
        blocking(move || {
            let files = this.files()?;
            let file_columns = this.file_columns(&files)?;
            let columns =
                Columns::new(file_columns, this.source.columns.as_ref(), partitions_of(&files))?;
            let inferred = if this.source.columns.is_none() { "inferred" } else { "declared" };
            let mut notes = vec![format!("{} CSV files, columns {inferred}", files.len())];
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
        let (range, watch) = blocking(move || {
            let (file, watch) = split.open(&this.context)?;
            Ok((this.range(&split, file, &request, from.as_ref())?, watch))
        })
        .await?;
        Ok(read_blocking(limit, watch, move |emitter| read_range(range, emitter)))
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        let this = self.clone();
        blocking(move || {
            let files = this.files()?;
            let bytes: u64 = files.iter().map(|file| file.size).sum();
            Ok(format!("{} CSV files, {bytes} bytes, first {}", files.len(), files[0].name))
        })
        .await
    }
}
