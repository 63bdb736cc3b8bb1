//! Prints results: tables for people, JSON for programs.

use arrow::array::RecordBatch;
use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{Table, presets};
use serde::Serialize;
use weir_connectors::records::Json;

use crate::failure::Failure;

/// One JSON document on standard output.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::Run(format!("failed to print the result: {error}")))?;
    line(&text)
}

/// A table with a header; for people.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    let text: Vec<String> =
        table.to_string().lines().map(|line| line.trim_end().trim_start().to_owned()).collect();
    line(&text.join("\n"))
}

/// A line on standard output. A closed pipe (`weir runs | head`) ends the command quietly.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::Run(format!("failed to write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Rows as JSON objects, nulls written.
pub(crate) fn rows_as_json(batches: &[RecordBatch]) -> Result<Vec<Json>, Failure> {
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::LineDelimited>(Vec::new());
    let result = (|| {
        for batch in batches {
            writer.write(batch)?;
        }
        writer.finish()
    })();
    result.map_err(|error| Failure::Run(format!("failed to print rows: {error}")))?;
    let text = writer.into_inner();
    serde_json::Deserializer::from_slice(&text)
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::Run(format!("failed to print rows: {error}")))
}

pub(crate) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
    }
}
