//! The columns of a file source: those inside the files, and those that its folders name.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use weir_spec::DeclaredColumns;

use crate::files::listing::SourceFile;
use crate::records::column_from_text;
use crate::types::{arrow_field, type_name};
use crate::{ConnectorError, ScanRequest};

/// All columns: the files' own, then the partitions'.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Columns {
    pub file: SchemaRef,
    pub partitions: Fields,
}

/// The declared columns that are inside the files, not in the names of their folders.
pub(crate) fn declared_in_file(
    declared: &DeclaredColumns,
    partitions: &[(String, Option<String>)],
) -> SchemaRef {
    let fields: Fields = declared
        .iter()
        .filter(|(name, _)| !partitions.iter().any(|(key, _)| key == *name))
        .map(|(name, column_type)| arrow_field(name, column_type))
        .collect();
    Arc::new(Schema::new(fields))
}

impl Columns {
    /// Partition columns are strings unless `declared` says otherwise.
    pub(crate) fn new(
        file: SchemaRef,
        declared: Option<&DeclaredColumns>,
        partitions: &[(String, Option<String>)],
    ) -> Result<Self, ConnectorError> {
        if let Some((key, _)) = partitions.iter().find(|(key, _)| file.field_with_name(key).is_ok())
        {
            return Err(ConnectorError::config(format!(
                "column `{key}` is in the files and is also the name of a partition folder; \
                 set `hive_partitions: false` to read the files' own"
            )));
        }
        let partitions = partitions
            .iter()
            .map(|(key, _)| match declared.and_then(|declared| declared.get(key)) {
                Some(column_type) => arrow_field(key, column_type),
                None => Field::new(key, DataType::Utf8, true),
            })
            .collect();
        Ok(Self { file, partitions })
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        let fields: Fields = self.file.fields().iter().chain(&self.partitions).cloned().collect();
        Arc::new(Schema::new(fields))
    }

    /// What a request needs of one file.
    pub(crate) fn project(
        &self,
        request: &ScanRequest,
        partitions: &[(String, Option<String>)],
    ) -> Result<Projection, ConnectorError> {
        let all = self.schema();
        let wanted: Vec<FieldRef> = match &request.columns {
            None => all.fields().iter().cloned().collect(),
            Some(names) => names
                .iter()
                .map(|name| {
                    let found = all.fields().iter().find(|field| field.name() == name);
                    found.cloned().ok_or_else(|| {
                        ConnectorError::config(format!(
                            "there is no column `{name}`; there are: {}",
                            names_of(all.fields())
                        ))
                    })
                })
                .collect::<Result<_, _>>()?,
        };
        let mut in_file = Vec::new();
        let mut slots = Vec::new();
        for field in &wanted {
            if self.file.field_with_name(field.name()).is_ok() {
                slots.push(Slot::File(in_file.len()));
                in_file.push(Arc::clone(field));
            } else {
                slots.push(Slot::Constant(constant(field, partitions)?));
            }
        }
        Ok(Projection {
            in_file: Arc::new(Schema::new(in_file)),
            output: Arc::new(Schema::new(wanted)),
            slots,
        })
    }
}

/// How the columns of a file become the requested ones.
#[derive(Clone, Debug)]
pub(crate) struct Projection {
    /// What to read from the file, in order.
    pub in_file: SchemaRef,
    pub output: SchemaRef,
    slots: Vec<Slot>,
}

#[derive(Clone, Debug)]
enum Slot {
    File(usize),
    /// One value.
    Constant(ArrayRef),
}

impl Projection {
    /// `columns` are those of [`Projection::in_file`].
    pub(crate) fn assemble(
        &self,
        columns: &[ArrayRef],
        row_count: usize,
    ) -> Result<RecordBatch, ConnectorError> {
        let repeat = arrow::array::UInt32Array::from(vec![0; row_count]);
        let columns = self
            .slots
            .iter()
            .map(|slot| match slot {
                Slot::File(index) => Ok(Arc::clone(&columns[*index])),
                Slot::Constant(value) => arrow::compute::take(value, &repeat, None),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(row_count));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.output), columns, &options)?)
    }
}

pub(crate) fn names_of(fields: &Fields) -> String {
    fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

fn constant(
    field: &FieldRef,
    partitions: &[(String, Option<String>)],
) -> Result<ArrayRef, ConnectorError> {
    let value = partitions
        .iter()
        .find(|(key, _)| key == field.name())
        .and_then(|(_, value)| value.as_ref());
    let Some(text) = value else { return Ok(new_null_array(field.data_type(), 1)) };
    let misfit = || {
        ConnectorError::data(format!(
            "partition folder {}={text}: \"{text}\" does not fit the declared type {}",
            field.name(),
            type_name(field.data_type(), false)
        ))
    };
    // Arrow's cast rounds.
    if matches!(field.data_type(), DataType::Decimal128(_, _)) {
        return column_from_text(&[Some(text)], field).map_err(|_| misfit());
    }
    let array: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(&array, field.data_type(), &options).map_err(|_| misfit())
}

/// The partitions of the first file: all files have the same keys.
pub(crate) fn partitions_of(files: &[SourceFile]) -> &[(String, Option<String>)] {
    files.first().map_or(&[], |file| &file.partitions)
}
