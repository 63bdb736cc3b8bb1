//! Rows as CSV lines (RFC 4180).
//!
//! Null is an empty cell, the empty string `""`, as PostgreSQL's `COPY` reads them. Binary is base64,
//! lists and structs are JSON text, times are RFC 3339. Lines end with `\n`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::json::as_text;

/// How cells are separated and quoted.
#[derive(Clone, Copy, Debug)]
pub(super) struct CsvStyle {
    pub delimiter: u8,
    pub quote: u8,
    pub header: bool,
}

impl CsvStyle {
    pub(super) fn write_header(
        self,
        schema: &Schema,
        out: &mut impl Write,
    ) -> Result<(), ArrowError> {
        if !self.header {
            return Ok(());
        }
        let mut line = Vec::new();
        for (index, field) in schema.fields().iter().enumerate() {
            if index > 0 {
                line.push(self.delimiter);
            }
            self.push_cell(field.name(), &mut line);
        }
        line.push(b'\n');
        out.write_all(&line)?;
        Ok(())
    }

    pub(super) fn write_rows(
        self,
        rows: &RecordBatch,
        out: &mut impl Write,
    ) -> Result<(), ArrowError> {
        let schema = rows.schema();
        let columns = schema
            .fields()
            .iter()
            .zip(rows.columns())
            .map(|(field, array)| {
                Ok(match array.data_type() {
                    data_type if data_type.is_nested() || is_binary(data_type) => {
                        Cow::Owned(as_text(field, array)?)
                    }
                    _ => Cow::Borrowed(array),
                })
            })
            .collect::<Result<Vec<Cow<'_, ArrayRef>>, ArrowError>>()?;
        let options = FormatOptions::new().with_display_error(false);
        let formatters = columns
            .iter()
            .map(|array| ArrayFormatter::try_new(array.as_ref().as_ref(), &options))
            .collect::<Result<Vec<_>, _>>()?;
        let nulls: Vec<_> = columns.iter().map(|array| array.logical_nulls()).collect();

        let mut lines = Vec::with_capacity(rows.num_rows() * 16 * columns.len().max(1));
        let mut cell = String::new();
        for row in 0..rows.num_rows() {
            for (index, formatter) in formatters.iter().enumerate() {
                if index > 0 {
                    lines.push(self.delimiter);
                }
                if nulls[index].as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                    // A line without any byte would be skipped by readers.
                    if formatters.len() == 1 {
                        lines.extend([self.quote; 2]);
                    }
                    continue;
                }
                cell.clear();
                write!(cell, "{}", formatter.value(row)).map_err(|_| {
                    ArrowError::CsvError(format!(
                        "column {}: a value of type {} cannot be written as text",
                        schema.field(index).name(),
                        schema.field(index).data_type()
                    ))
                })?;
                self.push_cell(&cell, &mut lines);
            }
            lines.push(b'\n');
        }
        out.write_all(&lines)?;
        Ok(())
    }

    fn push_cell(self, cell: &str, line: &mut Vec<u8>) {
        let special = |byte: &u8| {
            *byte == self.delimiter || *byte == self.quote || matches!(byte, b'\n' | b'\r')
        };
        let bytes = cell.as_bytes();
        // White space at the ends is kept by quotes where readers trim bare cells.
        let padded = cell.starts_with(' ') || cell.ends_with(' ');
        if !bytes.is_empty() && !padded && !bytes.iter().any(special) {
            line.extend_from_slice(bytes);
            return;
        }
        line.push(self.quote);
        for byte in bytes {
            if *byte == self.quote {
                line.push(self.quote);
            }
            line.push(*byte);
        }
        line.push(self.quote);
    }
}

fn is_binary(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_)
    )
}
