//! What the footers of Parquet files say of the values of their columns.
//!
//! DataFusion makes facts of bounds, such as that a column has one value: they are given only where no value can lie
//! outside of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::{SortOptions, concat, sort_to_indices, take};
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::RowGroupMetaData;

use super::schema::plain_type;
use crate::ColumnBounds;

/// Of integers, decimals and times. Texts are cut off in footers, and nobody can estimate how many lie between two;
/// footers leave out that a column of floats has NaN, which is greater than all other values.
#[derive(Default)]
pub(crate) struct Bounds {
    /// `None`: some file does not say it.
    columns: BTreeMap<String, Option<ColumnBounds>>,
}

impl Bounds {
    pub(crate) fn add(&mut self, footer: &ArrowReaderMetadata) {
        for field in footer.schema().fields() {
            let found = Some(field.data_type())
                .filter(|data_type| is_bounded(data_type))
                .and_then(|_| bounds_of(footer, field.name()));
            let bounds = match self.columns.remove(field.name()) {
                Some(known) => known.zip(found).and_then(|(known, found)| both(&known, &found)),
                None => found,
            };
            self.columns.insert(field.name().clone(), bounds);
        }
    }

    pub(crate) fn into_columns(self) -> BTreeMap<String, ColumnBounds> {
        let columns = self.columns.into_iter();
        columns.filter_map(|(name, bounds)| Some((name, bounds?))).collect()
    }
}

fn is_bounded(data_type: &DataType) -> bool {
    let is_ordered = data_type.is_integer() || data_type.is_decimal() || data_type.is_temporal();
    is_ordered && !matches!(data_type, DataType::Interval(_)) && plain_type(data_type) == *data_type
}

/// `None` where a row group with values does not say between what they lie.
fn bounds_of(footer: &ArrowReaderMetadata, column: &str) -> Option<ColumnBounds> {
    let converter =
        StatisticsConverter::try_new(column, footer.schema(), footer.parquet_schema()).ok()?;
    let index = converter.parquet_column_index()?;
    let mut nulls = 0;
    let mut with_values: Vec<&RowGroupMetaData> = Vec::new();
    for group in footer.metadata().row_groups() {
        let statistics = group.column(index).statistics()?;
        let null_count = statistics.null_count_opt()?;
        nulls += null_count;
        if null_count < u64::try_from(group.num_rows()).ok()? {
            if statistics.is_min_max_deprecated() {
                return None;
            }
            with_values.push(group);
        }
    }
    let least = converter.row_group_mins(with_values.iter().copied()).ok()?;
    let greatest = converter.row_group_maxes(with_values.iter().copied()).ok()?;
    if least.null_count() > 0 || greatest.null_count() > 0 {
        return None;
    }
    Some(ColumnBounds { least: first(&least, false)?, greatest: first(&greatest, true)?, nulls })
}

fn both(one: &ColumnBounds, other: &ColumnBounds) -> Option<ColumnBounds> {
    let join = |one: &ArrayRef, other: &ArrayRef| concat(&[one.as_ref(), other.as_ref()]).ok();
    Some(ColumnBounds {
        least: first(&join(&one.least, &other.least)?, false)?,
        greatest: first(&join(&one.greatest, &other.greatest)?, true)?,
        nulls: one.nulls + other.nulls,
    })
}

/// The one that comes first in order.
fn first(values: &ArrayRef, descending: bool) -> Option<ArrayRef> {
    let order = SortOptions { descending, nulls_first: false };
    let index = sort_to_indices(values, Some(order), Some(1)).ok()?;
    let value = take(values, &index, None).ok()?;
    (value.len() == 1 && value.is_valid(0)).then(|| Arc::clone(&value))
}
