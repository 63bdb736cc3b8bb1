//! How a CSV file is written.

use arrow::csv::reader::Format;
use regex::Regex;
use weir_spec::CsvSource;

use crate::ConnectorError;

/// The characters of a CSV file and the cells that mean null.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    pub header: bool,
    pub delimiter: u8,
    pub quote: u8,
    pub escape: Option<u8>,
    pub comment: Option<u8>,
    pub multiline: bool,
    /// Empty: only the empty cell is null.
    null_values: Vec<String>,
    null_pattern: Option<Regex>,
}

impl Dialect {
    pub(crate) fn new(source: &CsvSource) -> Result<Self, ConnectorError> {
        let only_empty = source.null_values.iter().all(String::is_empty);
        let null_values = if only_empty { Vec::new() } else { source.null_values.clone() };
        let null_pattern = if only_empty {
            None
        } else {
            let choices: Vec<String> =
                null_values.iter().map(|value| regex::escape(value)).collect();
            let pattern = Regex::new(&format!("^(?:{})$", choices.join("|"))).map_err(|error| {
                ConnectorError::config(format!("null_values are too long: {error}"))
            })?;
            Some(pattern)
        };
        Ok(Self {
            header: source.header,
            delimiter: source.delimiter,
            quote: source.quote,
            escape: source.escape,
            comment: source.comment,
            multiline: source.multiline,
            null_values,
            null_pattern,
        })
    }

    /// Cuts records into cells, exactly as [`Dialect::format`] does.
    pub(crate) fn parser(&self) -> csv_core::Reader {
        csv_core::ReaderBuilder::new()
            .delimiter(self.delimiter)
            .quote(self.quote)
            .escape(self.escape)
            .comment(self.comment)
            .build()
    }

    /// For Arrow's decoder; the header is not its business.
    pub(crate) fn format(&self) -> Format {
        let mut format = Format::default()
            .with_header(false)
            .with_delimiter(self.delimiter)
            .with_quote(self.quote);
        if let Some(escape) = self.escape {
            format = format.with_escape(escape);
        }
        if let Some(comment) = self.comment {
            format = format.with_comment(comment);
        }
        match &self.null_pattern {
            Some(pattern) => format.with_null_regex(pattern.clone()),
            None => format,
        }
    }

    pub(crate) fn is_null(&self, cell: &str) -> bool {
        if self.null_values.is_empty() {
            cell.is_empty()
        } else {
            self.null_values.iter().any(|value| value == cell)
        }
    }
}
