use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    Date32Type, Decimal128Type, Int32Type, Schema, TimeUnit, TimestampMicrosecondType,
};

use super::*;

/// As the text of a file would be read.
macro_rules! json {
    ($($json:tt)+) => {
        Json::from(serde_json::json!($($json)+))
    };
}

fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

#[test]
fn values_are_coerced_as_the_table_says() {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, None);
    let schema = schema(vec![
        Field::new("text", DataType::Utf8, true),
        Field::new("int", DataType::Int32, true),
        Field::new("price", DataType::Decimal128(10, 2), true),
        Field::new("at", timestamp, true),
        Field::new("day", DataType::Date32, true),
    ]);
    let (rows, rejected) = decode_records(
        &schema,
        vec![
            json!({"text": 1.5, "int": "7", "price": 0.1, "at": "2024-01-01T02:00:00+02:00", "day": "1970-01-02"}),
            json!({"text": {"a": [1]}, "int": 3.0, "price": "12.34", "at": "2024-01-01 00:00:00.5", "other": 1}),
        ],
    );
    assert!(rejected.is_empty(), "{rejected:?}");
    assert_eq!(rows.column(0).as_string::<i32>().value(0), "1.5");
    assert_eq!(rows.column(0).as_string::<i32>().value(1), r#"{"a":[1]}"#);
    assert_eq!(rows.column(1).as_primitive::<Int32Type>().values(), &[7, 3]);
    assert_eq!(rows.column(2).as_primitive::<Decimal128Type>().values(), &[10, 1234]);
    let at = rows.column(3).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(at.value(0), 1_704_067_200_000_000);
    assert_eq!(at.value(1), 1_704_067_200_500_000);
    assert_eq!(rows.column(4).as_primitive::<Date32Type>().value(0), 1);
    assert!(rows.column(4).is_null(1));
}

#[test]
fn record_that_does_not_fit_is_rejected_with_every_reason() {
    let schema = schema(vec![
        Field::new("id", DataType::Int32, true),
        Field::new("day", DataType::Date32, true),
    ]);
    let (rows, rejected) = decode_records(
        &schema,
        vec![
            json!({"id": 3_000_000_000_u64, "day": "yesterday"}),
            json!({"id": 1.5}),
            json!({"id": 1}),
            json!([1]),
        ],
    );
    assert_eq!(rows.num_rows(), 1);
    assert_eq!(rejected.len(), 3);
    assert_eq!(
        rejected[0].reason,
        "column id: 3000000000 is not an int32; column day: \"yesterday\" is not a date"
    );
    assert_eq!(rejected[1].reason, "column id: 1.5 is not an int32");
    assert_eq!(rejected[2].reason, "[1] is not a JSON object");
}

#[test]
fn nested_values_are_inferred_and_decoded() {
    let records = vec![
        json!({"id": 1, "tags": ["a"], "address": {"zip": 1, "city": "X"}, "mixed": 1}),
        json!({"id": 2.5, "tags": [], "address": {"zip": "01", "more": true}, "mixed": [2]}),
        json!({"id": null}),
    ];
    let schema = Arc::new(infer_schema(&records));
    assert_eq!(schema.field(0).data_type(), &DataType::Float64);
    assert_eq!(schema.field(3).data_type(), &DataType::Utf8);
    let (rows, rejected) = decode_records(&schema, records);
    assert!(rejected.is_empty(), "{rejected:?}");
    let address = rows.column(2).as_struct();
    assert_eq!(address.column(0).as_string::<i32>().value(0), "1");
    assert_eq!(address.column(0).as_string::<i32>().value(1), "01");
    assert!(rows.column(2).is_null(2));
    assert_eq!(rows.column(1).as_list::<i32>().value(0).len(), 1);
    assert_eq!(rows.column(3).as_string::<i32>().value(1), "[2]");
}

#[test]
fn bad_value_inside_a_list_names_its_path_and_rejects_the_record() {
    let item = Arc::new(Field::new_list_field(DataType::Int64, true));
    let schema = schema(vec![Field::new("points", DataType::List(item), true)]);
    let (rows, rejected) =
        decode_records(&schema, vec![json!({"points": [1, "x"]}), json!({"points": [1]})]);
    assert_eq!(rows.num_rows(), 1);
    assert_eq!(rejected[0].reason, "column points[]: \"x\" is not an int64");
}

#[test]
fn json_column_keeps_valid_json_text() {
    let field = crate::types::arrow_field("raw", &weir_spec::ColumnType::Json);
    let (rows, _) = decode_records(
        &schema(vec![field]),
        vec![json!({"raw": "text"}), json!({"raw": {"a": 1}}), json!({"raw": null})],
    );
    let raw = rows.column(0).as_string::<i32>();
    assert_eq!((raw.value(0), raw.value(1)), ("\"text\"", "{\"a\":1}"));
    assert!(raw.is_null(2));
}

#[test]
fn numbers_arrive_with_all_their_digits_or_are_rejected() {
    let schema = schema(vec![
        Field::new("big", DataType::UInt64, true),
        Field::new("price", DataType::Decimal128(38, 20), true),
        Field::new("text", DataType::Utf8, true),
    ]);
    let parse = |text: &str| Json::parse(text.as_bytes()).expect("JSON");
    let (rows, rejected) = decode_records(
        &schema,
        vec![
            parse(
                r#"{"big": 18446744073709551615.0, "price": 123456789012345678.12345678901234567890, "text": 1.50}"#,
            ),
            parse(r#"{"big": 9007199254740993e0, "price": "0.1", "text": 1e400}"#),
            parse(r#"{"big": 18446744073709551614.9999999999999}"#),
            parse(r#"{"price": 0.123456789012345678901}"#),
            parse(&format!("{{\"price\": {}}}", "7".repeat(256))),
        ],
    );
    let big = rows.column(0).as_primitive::<arrow::datatypes::UInt64Type>();
    assert_eq!(big.values(), &[u64::MAX, 9_007_199_254_740_993]);
    let price = rows.column(1).as_primitive::<Decimal128Type>();
    assert_eq!(
        price.values(),
        &[12_345_678_901_234_567_812_345_678_901_234_567_890, 10_000_000_000_000_000_000]
    );
    let text = rows.column(2).as_string::<i32>();
    assert_eq!((text.value(0), text.value(1)), ("1.50", "1e400"));
    let reasons: Vec<&str> = rejected.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(
        reasons[..2],
        [
            "column big: 18446744073709551614.9999999999999 is not a uint64",
            "column price: 0.123456789012345678901 does not fit decimal(38,20) exactly",
        ]
    );
    assert!(reasons[2].starts_with("column price: 777"), "{}", reasons[2]);
}

#[test]
fn integers_beyond_64_bits_are_inferred_as_text() {
    let record = Json::parse(br#"{"id": 123456789012345678901234567890}"#).expect("JSON");
    let schema = Arc::new(infer_schema(std::slice::from_ref(&record)));
    let (rows, _) = decode_records(&schema, vec![record]);
    assert_eq!(rows.column(0).as_string::<i32>().value(0), "123456789012345678901234567890");
}
