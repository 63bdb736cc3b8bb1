//! Rows whose right values are known from their id, so that any reader can check a whole table:
//! every id exactly once, every value as computed.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, Float64Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{Float64Type, Int64Type};
use parquet::arrow::ArrowWriter;

/// `id` 0 … rows-1, `grp` = id mod 97, `amount` = id × 0.25, `name` = text that needs quoting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    pub id: i64,
    pub grp: i64,
    pub amount: f64,
}

/// The columns, as a pipeline file declares them.
pub const COLUMNS: &str = "{ id: int64, grp: int64, amount: float64, name: string }";

pub fn row(id: i64) -> Row {
    Row { id, grp: id % 97, amount: id as f64 * 0.25 }
}

pub fn name(id: i64) -> String {
    match id % 5 {
        0 => format!("plain {id}"),
        1 => format!("comma, {id}"),
        2 => format!("quote \"{id}\""),
        3 => format!("línea {id}"),
        _ => format!("two\nlines {id}"),
    }
}

/// Writes `rows` rows as CSV with a header into `files` files `part-<n>.csv` of a folder.
pub fn write_csv(folder: &Path, rows: i64, files: i64) {
    std::fs::create_dir_all(folder).expect("the folder can be made");
    for file in 0..files {
        let mut text = String::from("id,grp,amount,name\n");
        for id in (rows * file / files)..(rows * (file + 1) / files) {
            let Row { id, grp, amount } = row(id);
            let name = name(id).replace('"', "\"\"");
            writeln!(text, "{id},{grp},{amount},\"{name}\"").expect("a string takes any text");
        }
        std::fs::write(folder.join(format!("part-{file}.csv")), text).expect("the disk has room");
    }
}

/// Writes rows as one Parquet file, with the folders above it.
pub fn write_parquet(path: &Path, ids: std::ops::Range<i64>) {
    let folder = path.parent().expect("a file is in a folder");
    std::fs::create_dir_all(folder).expect("the folder can be made");
    let ints = |value: fn(i64) -> i64| -> ArrayRef {
        Arc::new(ids.clone().map(value).collect::<Int64Array>())
    };
    let amounts: Float64Array = ids.clone().map(|id| row(id).amount).collect();
    let names: StringArray = ids.clone().map(|id| Some(name(id))).collect();
    let batch = RecordBatch::try_from_iter([
        ("id", ints(|id| id)),
        ("grp", ints(|id| row(id).grp)),
        ("amount", Arc::new(amounts) as ArrayRef),
        ("name", Arc::new(names) as ArrayRef),
    ])
    .expect("the columns have one length");
    let file = File::create(path).expect("the disk has room");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("the types are known");
    writer.write(&batch).expect("the disk has room");
    writer.close().expect("the disk has room");
}

/// Collects rows from any reader and checks that they are the dataset.
#[derive(Debug, Default)]
pub struct Checker {
    ids: Vec<i64>,
}

impl Checker {
    #[track_caller]
    pub fn add(&mut self, id: i64, grp: i64, amount: f64, text: &str) {
        assert_eq!((grp, amount), (row(id).grp, row(id).amount), "wrong values for id {id}");
        assert_eq!(text, name(id), "wrong name for id {id}");
        self.ids.push(id);
    }

    /// Columns in the dataset's order.
    #[track_caller]
    pub fn add_batch(&mut self, batch: &RecordBatch) {
        let column = |name: &str| {
            batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}")).clone()
        };
        let ids = column("id");
        let groups = column("grp");
        let amounts = column("amount");
        let names = arrow::compute::cast(&column("name"), &arrow::datatypes::DataType::Utf8)
            .expect("names are text");
        for index in 0..batch.num_rows() {
            assert!(!ids.is_null(index), "an id is null");
            self.add(
                ids.as_primitive::<Int64Type>().value(index),
                groups.as_primitive::<Int64Type>().value(index),
                amounts.as_primitive::<Float64Type>().value(index),
                names.as_string::<i32>().value(index),
            );
        }
    }

    /// Rows so far.
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// Every id of the dataset exactly once.
    pub fn problem(mut self, rows: i64) -> Option<String> {
        self.ids.sort_unstable();
        let found = self.ids.len();
        let mut expected = 0;
        for id in self.ids {
            if id < expected {
                return Some(format!("id {id} is there twice ({found} rows for {rows})"));
            }
            if id > expected {
                return Some(format!("id {expected} is missing ({found} rows for {rows})"));
            }
            expected += 1;
        }
        (expected != rows).then(|| format!("id {expected} is missing ({found} rows for {rows})"))
    }

    #[track_caller]
    pub fn assert_complete(self, rows: i64) {
        if let Some(problem) = self.problem(rows) {
            panic!("{problem}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(ids: &[i64], rows: i64) -> Option<String> {
        let mut checker = Checker::default();
        for id in ids {
            checker.add(*id, row(*id).grp, row(*id).amount, &name(*id));
        }
        checker.problem(rows)
    }

    #[test]
    fn checker_finds_missing_and_repeated_rows() {
        assert_eq!(checked(&[2, 0, 1], 3), None);
        assert!(checked(&[0, 2], 3).is_some_and(|problem| problem.contains("id 1 is missing")));
        assert!(checked(&[0, 1, 1, 2], 3).is_some_and(|problem| problem.contains("id 1 is there")));
        assert!(checked(&[0, 1], 3).is_some_and(|problem| problem.contains("id 2 is missing")));
    }
}
