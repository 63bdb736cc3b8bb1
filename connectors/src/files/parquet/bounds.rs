//! What the footers of Parquet files say of the values of their columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::{SortOptions, concat, sort_to_indices, take};
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;

use super::schema::plain_type;
use crate::ColumnBounds;

/// Of numbers and times. Texts are cut off in footers, and nobody can estimate how many lie between two.
#[derive(Default)]
pub(crate) struct Bounds {
    columns: BTreeMap<String, ColumnBounds>,
}

impl Bounds {
    pub(crate) fn add(&mut self, footer: &ArrowReaderMetadata) {
        for field in footer.schema().fields() {
            if !is_bounded(field.data_type()) {
                continue;
            }
            if let Some(found) = bounds_of(footer, field.name()) {
                let bounds = match self.columns.remove(field.name()) {
                    Some(known) => both(&known, &found),
                    None => Some(found),
                };
                self.columns.extend(bounds.map(|bounds| (field.name().clone(), bounds)));
            }
        }
    }

    pub(crate) fn into_columns(self) -> BTreeMap<String, ColumnBounds> {
        self.columns
    }
}

fn is_bounded(data_type: &DataType) -> bool {
    let is_ordered = data_type.is_numeric() || data_type.is_temporal();
    is_ordered && plain_type(data_type) == *data_type
}

/// `None` where no row group says anything.
fn bounds_of(footer: &ArrowReaderMetadata, column: &str) -> Option<ColumnBounds> {
    let groups = footer.metadata().row_groups();
    let converter =
        StatisticsConverter::try_new(column, footer.schema(), footer.parquet_schema()).ok()?;
    let nulls = converter.row_group_null_counts(groups).ok()?;
    Some(ColumnBounds {
        least: first(&converter.row_group_mins(groups).ok()?, false)?,
        greatest: first(&converter.row_group_maxes(groups).ok()?, true)?,
        nulls: nulls.iter().flatten().sum(),
    })
}

fn both(one: &ColumnBounds, other: &ColumnBounds) -> Option<ColumnBounds> {
    let join = |one: &ArrayRef, other: &ArrayRef| concat(&[one.as_ref(), other.as_ref()]).ok();
    Some(ColumnBounds {
        least: first(&join(&one.least, &other.least)?, false)?,
        greatest: first(&join(&one.greatest, &other.greatest)?, true)?,
        nulls: one.nulls + other.nulls,
    })
}

/// The one that comes first in order; nulls say nothing.
fn first(values: &ArrayRef, descending: bool) -> Option<ArrayRef> {
    let order = SortOptions { descending, nulls_first: false };
    let index = sort_to_indices(values, Some(order), Some(1)).ok()?;
    let value = take(values, &index, None).ok()?;
    (value.len() == 1 && value.is_valid(0)).then(|| Arc::clone(&value))
}
