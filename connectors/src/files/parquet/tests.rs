use std::path::Path;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, StringViewArray,
};
use arrow::datatypes::{DataType, Int64Type};
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use weir_spec::TemplateText;

use super::*;
use crate::conformance::check_source;
use crate::{ErrorKind, Redactor, Secrets};

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, group_rows: usize) {
    std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )
    .expect("a batch");
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group_rows));
    write_as(path, &batch, properties);
}

fn write_as(path: &Path, batch: &RecordBatch, properties: WriterPropertiesBuilder) {
    let file = std::fs::File::create(path).expect("a file");
    let mut writer =
        ArrowWriter::try_new(file, batch.schema(), Some(properties.build())).expect("a writer");
    writer.write(batch).expect("written");
    writer.close().expect("written");
}

fn open(folder: &Path, path: &str) -> ParquetFiles {
    let context = ConnectorContext::new(folder, Secrets::default(), Redactor::default());
    let source = ParquetSource { path: TemplateText::new(path), hive_partitions: None };
    ParquetFiles::new("orders", &source, &context)
}

fn ids(range: std::ops::Range<i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(range))
}

fn names(range: std::ops::Range<i64>) -> ArrayRef {
    Arc::new(StringViewArray::from_iter_values(range.map(|id| format!("name of {id}"))))
}

#[tokio::test]
async fn row_groups_are_split_read_and_resumed() {
    let folder = tempfile::tempdir().expect("a folder");
    let columns = vec![("id", ids(0..50_000)), ("name", names(0..50_000))];
    write(&folder.path().join("a.parquet"), columns, 20_000);
    let files = open(folder.path(), "a.parquet");
    let splits = files.splits(&ScanRequest::default(), 3).await.expect("splits");
    assert_eq!(splits.len(), 3, "{splits:?}");
    assert_eq!(splits[0].estimated_rows, Some(20_000));
    let rows = check_source(&files, 3, 1).await.expect("a conforming source");
    assert_eq!(rows.values().sum::<usize>(), 50_000);
    assert!(check_source(&files, 1, 2).await.expect("a conforming source") == rows);
    let schema = files.describe().await.expect("a description").schema;
    assert_eq!(schema.field(1).data_type(), &DataType::Utf8, "views become plain strings");
}

#[tokio::test]
async fn files_are_united_by_column_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    write(&folder.path().join("t/y=1/a.parquet"), vec![("id", ids(0..1))], 10);
    write(&folder.path().join("t/y=2/b.parquet"), vec![("note", text), ("id", ids(1..2))], 10);
    let rows = check_source(&open(folder.path(), "t"), 2, 1).await.expect("conforming");
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["0|∅|1", "1|x|2"]);
}

#[tokio::test]
async fn files_that_disagree_about_a_type_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("t/a.parquet"), vec![("id", ids(0..1))], 10);
    write(&folder.path().join("t/b.parquet"), vec![("id", names(0..1))], 10);
    let error = open(folder.path(), "t").describe().await.expect_err("different types");
    assert_eq!(error.kind, ErrorKind::Data);
    assert!(error.message.contains("Int64 in t/a.parquet and Utf8 in t/b.parquet"), "{error}");
}

#[tokio::test]
async fn broken_files_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.parquet");
    write(&path, vec![("id", ids(0..10_000))], 10_000);
    let files = open(folder.path(), "a.parquet");
    let whole = std::fs::read(&path).expect("bytes");

    std::fs::write(&path, &whole[..whole.len() - 5]).expect("a file");
    let error = files.describe().await.expect_err("a cut footer");
    assert_eq!(error.kind, ErrorKind::Data);
    assert!(error.message.starts_with("a.parquet is not a complete Parquet file"), "{error}");

    let mut damaged = whole;
    damaged[4..200].fill(0xff);
    std::fs::write(&path, &damaged).expect("a file");
    let request = ScanRequest::default();
    let splits = files.splits(&request, 1).await.expect("splits");
    let stream = files.open(&splits[0], &request, None).await.expect("a stream");
    let error = stream.try_collect::<Vec<_>>().await.expect_err("damaged pages");
    assert_eq!(error.kind, ErrorKind::Data);
    assert!(error.message.contains("row group 0 of a.parquet"), "{error}");
}

#[tokio::test]
async fn columns_come_in_the_requested_order() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("a.parquet"), vec![("id", ids(0..3)), ("name", names(0..3))], 10);
    let files = open(folder.path(), "a.parquet");
    let columns = Some(vec!["name".to_owned(), "id".to_owned()]);
    let request = ScanRequest { columns, ..ScanRequest::default() };
    let splits = files.splits(&request, 1).await.expect("splits");
    let stream = files.open(&splits[0], &request, None).await.expect("a stream");
    let batches: Vec<_> = stream.try_collect().await.expect("batches");
    assert_eq!(batches[0].rows.column(0).as_string::<i32>().value(2), "name of 2");
    assert_eq!(batches[0].rows.column(1).len(), 3);
}

#[tokio::test]
async fn text_of_every_representation_is_read_as_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let text: ArrayRef = Arc::new(StringArray::from(vec![Some("short"), None, Some("")]));
    let long: ArrayRef = Arc::new(StringArray::from(vec!["longer than a view holds"; 3]));
    let cast = |column: &ArrayRef, kind| arrow::compute::cast(column, &kind).expect("a cast");
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let columns = vec![
        ("plain", Arc::clone(&text)),
        ("view", cast(&text, DataType::Utf8View)),
        ("large", cast(&long, DataType::LargeUtf8)),
        ("dictionary", cast(&text, dictionary)),
        ("bytes", cast(&long, DataType::BinaryView)),
        ("id", ids(0..3)),
    ];
    write(&folder.path().join("a.parquet"), columns, 2);
    let files = open(folder.path(), "a.parquet");
    let request = ScanRequest::default();
    let splits = files.splits(&request, 1).await.expect("splits");
    let stream = files.open(&splits[0], &request, None).await.expect("a stream");
    let batches: Vec<_> = stream.try_collect().await.expect("batches");
    let batches: Vec<&RecordBatch> = batches.iter().map(|batch| &batch.rows).collect();
    let rows = arrow::compute::concat_batches(batches[0].schema_ref(), batches).expect("one batch");
    for column in ["plain", "view", "dictionary"] {
        assert_eq!(rows.column_by_name(column), Some(&text), "{column}");
    }
    assert_eq!(rows.column_by_name("large"), Some(&long));
    assert_eq!(rows.column_by_name("bytes"), Some(&cast(&long, DataType::Binary)));
}

#[tokio::test]
async fn footers_say_between_what_numbers_lie() {
    let folder = tempfile::tempdir().expect("a folder");
    let some: ArrayRef = Arc::new(Int64Array::from(vec![None, Some(-7), Some(3)]));
    write(
        &folder.path().join("t/a.parquet"),
        vec![("id", ids(10..50)), ("name", names(10..50))],
        20,
    );
    write(&folder.path().join("t/b.parquet"), vec![("id", ids(0..3)), ("some", some)], 1);
    let bounds = bounds_of(&open(folder.path(), "t")).await;
    let known = |column: &str| {
        let bounds = &bounds[column];
        let value = |array: &ArrayRef| array.as_primitive::<Int64Type>().value(0);
        (value(&bounds.least), value(&bounds.greatest), bounds.nulls)
    };
    assert_eq!(known("id"), (0, 49, 0));
    assert_eq!(known("some"), (-7, 3, 1));
    assert_eq!(bounds.len(), 2, "texts are left out");
}

async fn bounds_of(files: &ParquetFiles) -> BTreeMap<String, ColumnBounds> {
    let splits = files.splits(&ScanRequest::default(), 2).await.expect("splits");
    files.bounds(&splits).await.expect("bounds")
}

#[tokio::test]
async fn no_value_lies_outside_of_its_bounds() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join("t").join(name);
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN, 5.0]));
    write(&file("a.parquet"), vec![("silent", ids(0..3)), ("id", ids(0..3)), ("nan", floats)], 1);
    let files = open(folder.path(), "t");
    let known = |bounds: &BTreeMap<String, ColumnBounds>| -> Vec<String> {
        bounds.keys().cloned().collect()
    };
    assert_eq!(known(&bounds_of(&files).await), ["id", "silent"], "NaN is greater than 5");

    // One file says nothing of a column. What a third one says does not make up for it.
    let columns = [("silent", ids(7..9)), ("id", ids(7..9))];
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )
    .expect("a batch");
    let silent = WriterProperties::builder()
        .set_column_statistics_enabled("silent".into(), EnabledStatistics::None);
    write_as(&file("b.parquet"), &batch, silent);
    write(&file("c.parquet"), vec![("silent", ids(3..5)), ("id", ids(3..5))], 1);
    let bounds = bounds_of(&files).await;
    assert_eq!(known(&bounds), ["id"]);
    assert_eq!(bounds["id"].greatest.as_primitive::<Int64Type>().value(0), 8);
}

#[tokio::test]
async fn bounds_are_those_of_the_files_that_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join("t").join(name);
    write(&file("a.parquet"), vec![("id", ids(0..3))], 1);
    let files = open(folder.path(), "t");
    files.describe().await.expect("a description");
    write(&file("b.parquet"), vec![("id", ids(3..9))], 1);
    let splits = files.splits(&ScanRequest::default(), 2).await.expect("splits");
    write(&file("c.parquet"), vec![("id", ids(9..20))], 1);
    let bounds = files.bounds(&splits).await.expect("bounds");
    assert_eq!(bounds["id"].greatest.as_primitive::<Int64Type>().value(0), 8);
}
