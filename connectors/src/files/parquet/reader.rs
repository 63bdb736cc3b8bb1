//! Reads some row groups of a Parquet file.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Fields, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};

use super::chunks::ColumnChunks;
use super::schema::plain_type;
use crate::files::columns::Projection;
use crate::files::opened::OpenFile;
use crate::files::stream::{Emitter, Stop};
use crate::{ConnectorError, ErrorKind, Position, SourceBatch};

const BATCH_ROWS: usize = 8192;

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct RowGroups {
    pub name: String,
    pub file: OpenFile,
    /// Row groups `first..end`.
    pub first: u64,
    /// Rows of the first row group that are done.
    pub skip: u64,
    pub end: u64,
    pub projection: Projection,
}

/// The footer: schema and row groups. Blocking.
pub(crate) fn load_footer(
    file: &OpenFile,
    name: &str,
) -> Result<ArrowReaderMetadata, ConnectorError> {
    ArrowReaderMetadata::load(&file.handle()?, ArrowReaderOptions::new()).map_err(|error| {
        ConnectorError::caused(
            ErrorKind::Data,
            format!(
                "{name} is not a complete Parquet file; write it again, or keep it out of the source's \
                 `path`"
            ),
            error,
        )
    })
}

/// `row group:rows done in it`.
pub(crate) fn parse_position(position: &Position) -> Result<(u64, u64), ConnectorError> {
    let parsed = position
        .0
        .split_once(':')
        .and_then(|(group, rows)| Some((group.parse().ok()?, rows.parse().ok()?)));
    parsed.ok_or_else(|| {
        ConnectorError::internal(format!("`{}` is no position in a Parquet file", position.0))
    })
}

/// Reads row group after row group into `emitter`. Blocking.
pub(crate) fn read_row_groups(groups: &RowGroups, emitter: &mut Emitter) -> Result<(), Stop> {
    let footer = with_plain_text(load_footer(&groups.file, &groups.name)?);
    let wanted = footer
        .schema()
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| groups.projection.in_file.field_with_name(field.name()).is_ok())
        .map(|(index, _)| index);
    let mask = ProjectionMask::roots(footer.parquet_schema(), wanted);
    for group in groups.first..groups.end {
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!(
                "failed to read row group {group} of {}, which is damaged or was changed; write the \
                 file again: {error}",
                groups.name
            );
            ConnectorError::data(message)
        };
        let mut done = if group == groups.first { groups.skip } else { 0 };
        let index = usize::try_from(group).map_err(|error| failed(&error))?;
        let metadata = footer.metadata().row_groups().get(index).ok_or_else(|| {
            failed(&"the file has fewer row groups than when this run was planned")
        })?;
        let total = u64::try_from(metadata.num_rows()).map_err(|error| failed(&error))?;
        if done >= total {
            continue;
        }
        let columns =
            ColumnChunks::open(&groups.file, metadata, &mask).map_err(|error| failed(&error))?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(columns, footer.clone())
            .with_row_groups(vec![index])
            .with_projection(mask.clone())
            .with_batch_size(BATCH_ROWS)
            .with_offset(usize::try_from(done).map_err(|error| failed(&error))?)
            .build()
            .map_err(|error| failed(&error))?;
        for batch in reader {
            let batch = batch.map_err(|error| failed(&error))?;
            let rows = assemble(groups, &batch)?;
            done += rows.num_rows() as u64;
            let position =
                if done == total { format!("{}:0", group + 1) } else { format!("{group}:{done}") };
            let position = Some(Position(position));
            emitter.emit(SourceBatch { rows, rejected: Vec::new(), position })?;
        }
        if done != total {
            let error = format!("it ends after {done} of {total} rows");
            return Err(failed(&error).into());
        }
    }
    Ok(())
}

/// The same footer, read as plain text and bytes: a file says in which of its types a column was
/// written, and to read views or dictionaries only to copy them would be slow.
fn with_plain_text(footer: ArrowReaderMetadata) -> ArrowReaderMetadata {
    let plain: Fields = footer
        .schema()
        .fields()
        .iter()
        .map(|field| match plain_type(field.data_type()) {
            text @ (DataType::Utf8 | DataType::Binary) if *field.data_type() != text => {
                Arc::new(field.as_ref().clone().with_data_type(text))
            }
            _ => Arc::clone(field),
        })
        .collect();
    if plain == *footer.schema().fields() {
        return footer;
    }
    let schema = Schema::new_with_metadata(plain, footer.schema().metadata().clone());
    let options = ArrowReaderOptions::new().with_schema(Arc::new(schema));
    // What cannot be read so is converted afterwards.
    ArrowReaderMetadata::try_new(Arc::clone(footer.metadata()), options).unwrap_or(footer)
}

/// The requested columns, in plain types; those that this file lacks are null.
fn assemble(groups: &RowGroups, batch: &RecordBatch) -> Result<RecordBatch, ConnectorError> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let columns = groups
        .projection
        .in_file
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
            Some(column) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
            Some(column) => cast_with_options(column, field.data_type(), &options),
        })
        .collect::<Result<Vec<ArrayRef>, _>>()?;
    groups.projection.assemble(&columns, batch.num_rows())
}
