//! What every [`Source`] must keep: one suite, run by each connector's tests.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt as _;

use crate::{ConnectorError, Position, ScanRequest, Source, SourceBatch, Split};

/// Rows as text, with how often each occurs.
pub type RowCounts = BTreeMap<String, usize>;

/// Checks that splits are deterministic, that resuming behind every `step`-th batch of every split
/// yields exactly the rest, and that projections yield the same columns. Returns all rows.
///
/// # Panics
///
/// When a promise is broken, with what was broken.
pub async fn check_source(
    source: &dyn Source,
    parallelism: usize,
    step: usize,
) -> Result<RowCounts, ConnectorError> {
    let request = ScanRequest::default();
    let description = source.describe().await?;
    let splits = source.splits(&request, parallelism).await?;
    let again = source.splits(&request, parallelism).await?;
    assert_eq!(splits, again, "splits differ between two plannings");
    source.check().await?;

    let mut all = RowCounts::new();
    for split in &splits {
        let batches = read(source, split, &request, None).await?;
        for batch in &batches {
            assert_eq!(batch.rows.schema(), description.schema, "schema of `{}`", split.label);
            assert!(batch.rows.num_rows() <= 16_384, "a batch of `{}` is too large", split.label);
        }
        count(&batches, &mut all);
        if description.resumable {
            if let Some(last) = batches.last() {
                assert!(last.position.is_some(), "`{}` ends without a position", split.label);
            }
            check_resume(source, split, &batches, step).await?;
        }
        check_projection(source, split, &description.schema, &batches).await?;
    }
    Ok(all)
}

async fn check_resume(
    source: &dyn Source,
    split: &Split,
    batches: &[SourceBatch],
    step: usize,
) -> Result<(), ConnectorError> {
    let mut whole = RowCounts::new();
    count(batches, &mut whole);
    for (index, batch) in batches.iter().enumerate().step_by(step.max(1)) {
        let Some(position) = &batch.position else { continue };
        let mut resumed = RowCounts::new();
        count(&batches[..=index], &mut resumed);
        let rest = read(source, split, &ScanRequest::default(), Some(position)).await?;
        count(&rest, &mut resumed);
        assert!(resumed == whole, "`{}` resumed at {position:?} yields other rows", split.label);
    }
    Ok(())
}

async fn check_projection(
    source: &dyn Source,
    split: &Split,
    schema: &arrow::datatypes::SchemaRef,
    batches: &[SourceBatch],
) -> Result<(), ConnectorError> {
    // Rows with a bad value in one column may be accepted when that column is not read.
    if batches.iter().any(|batch| !batch.rejected.is_empty()) {
        return Ok(());
    }
    let reversed: Vec<usize> = (0..schema.fields().len()).rev().collect();
    for indices in [reversed, vec![0], Vec::new()] {
        let names = indices.iter().map(|index| schema.field(*index).name().clone()).collect();
        let request = ScanRequest { columns: Some(names), ..ScanRequest::default() };
        let projected = read(source, split, &request, None).await?;
        let (mut found, mut expected) = (RowCounts::new(), RowCounts::new());
        count(&projected, &mut found);
        for batch in batches {
            count_rows(&batch.rows.project(&indices)?, &mut expected);
        }
        assert!(found == expected, "`{}` projected to {:?}", split.label, request.columns);
    }
    Ok(())
}

async fn read(
    source: &dyn Source,
    split: &Split,
    request: &ScanRequest,
    from: Option<&Position>,
) -> Result<Vec<SourceBatch>, ConnectorError> {
    source.open(split, request, from).await?.try_collect().await
}

/// Counts rows, and rejected rows with their reasons.
pub fn count(batches: &[SourceBatch], counts: &mut RowCounts) {
    for batch in batches {
        count_rows(&batch.rows, counts);
        for rejected in &batch.rejected {
            *counts
                .entry(format!("rejected: {} {}", rejected.reason, rejected.raw))
                .or_default() += 1;
        }
    }
}

fn count_rows(rows: &RecordBatch, counts: &mut RowCounts) {
    let options = FormatOptions::default().with_null("∅");
    let columns: Vec<ArrayFormatter<'_>> = rows
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).expect("every type has a text"))
        .collect();
    for row in 0..rows.num_rows() {
        let cells: Vec<String> =
            columns.iter().map(|column| column.value(row).to_string()).collect();
        *counts.entry(cells.join("|")).or_default() += 1;
    }
}
