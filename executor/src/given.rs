//! Rows given in place of a source: dead letters that are replayed, rows of a pipeline's own tests.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::StreamExt;
use serde_json::Value;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use weir_connectors::records::{Json, decode_given, infer_schema};
use weir_connectors::{
    ConnectorError, Position, ScanRequest, Source, SourceBatch, SourceDescription, SourceStream,
    Split,
};

const BATCH_ROWS: usize = 1024;

/// A source over a file of JSON lines. Resumable by byte offset; applies no predicates.
///
/// Rows lack a column: null. A row with a column that the schema does not have, or with a value that
/// does not fit its type, is an error that names its line.
#[derive(Clone, Debug)]
pub struct GivenSource {
    path: PathBuf,
    schema: SchemaRef,
}

impl GivenSource {
    /// With the schema of the source that it stands for, where that is known.
    pub fn with_schema(path: impl Into<PathBuf>, schema: &Schema) -> Self {
        let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        let fields: Vec<Field> = schema.fields().iter().map(nullable).collect();
        Self { path: path.into(), schema: Arc::new(Schema::new(fields)) }
    }

    /// With the columns that the rows have. Reads the whole file.
    pub fn inferred(path: impl Into<PathBuf>) -> Result<Self, ConnectorError> {
        let path = path.into();
        let file =
            std::fs::File::open(&path).map_err(|cause| ConnectorError::io("open", &path, cause))?;
        let mut broken = None;
        let rows = serde_json::Deserializer::from_reader(std::io::BufReader::new(file))
            .into_iter::<Json>()
            .map_while(|row| row.map_err(|cause| broken = Some(cause)).ok());
        let schema = infer_schema(rows);
        if let Some(cause) = broken {
            return Err(ConnectorError::data(format!(
                "failed to find columns in {}: {cause}",
                path.display()
            )));
        }
        Ok(Self::with_schema(path, &schema))
    }
}

#[async_trait]
impl Source for GivenSource {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        Ok(SourceDescription {
            schema: SchemaRef::clone(&self.schema),
            resumable: true,
            exact_predicates: Vec::new(),
            repeatable: false,
            notes: vec![format!("rows given in {}", self.path.display())],
        })
    }

    async fn splits(
        &self,
        _request: &ScanRequest,
        _parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        let metadata = tokio::fs::metadata(&self.path)
            .await
            .map_err(|cause| ConnectorError::io("read", &self.path, cause))?;
        Ok(vec![Split {
            label: self.path.display().to_string(),
            payload: Value::Null,
            weight: metadata.len(),
            estimated_rows: None,
        }])
    }

    async fn open(
        &self,
        _split: &Split,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        if !request.predicates.is_empty() {
            return Err(ConnectorError::internal("given rows cannot be filtered by the source"));
        }
        let offset = match from {
            None => 0,
            Some(Position(offset)) => offset.parse().map_err(|_| {
                ConnectorError::internal(format!("`{offset}` is not a position in given rows"))
            })?,
        };
        let mut file = File::open(&self.path)
            .await
            .map_err(|cause| ConnectorError::io("open", &self.path, cause))?;
        file.seek(SeekFrom::Start(offset))
            .await
            .map_err(|cause| ConnectorError::io("read", &self.path, cause))?;
        let lines = Lines {
            path: self.path.clone(),
            reader: BufReader::new(file),
            offset,
            schema: SchemaRef::clone(&self.schema),
            projected: project(&self.schema, request)?,
        };
        let batches = futures::stream::try_unfold(lines, |mut lines| async move {
            Ok(lines.next_batch().await?.map(|batch| (batch, lines)))
        });
        Ok(batches.boxed())
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        Ok(format!("{} exists", self.path.display()))
    }
}

fn project(schema: &SchemaRef, request: &ScanRequest) -> Result<SchemaRef, ConnectorError> {
    let Some(columns) = &request.columns else { return Ok(SchemaRef::clone(schema)) };
    let fields = columns.iter().map(|column| {
        schema
            .field_with_name(column)
            .cloned()
            .map_err(|_| ConnectorError::data(format!("the given rows have no column `{column}`")))
    });
    Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<Field>, _>>()?)))
}

struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// Of the next line.
    offset: u64,
    schema: SchemaRef,
    projected: SchemaRef,
}

impl Lines {
    async fn next_batch(&mut self) -> Result<Option<SourceBatch>, ConnectorError> {
        let mut rows = Vec::with_capacity(BATCH_ROWS);
        let mut line = Vec::new();
        while rows.len() < BATCH_ROWS {
            line.clear();
            let length = self
                .reader
                .read_until(b'\n', &mut line)
                .await
                .map_err(|cause| ConnectorError::io("read", &self.path, cause))?;
            if length == 0 {
                break;
            }
            if !line.trim_ascii().is_empty() {
                rows.push(self.parse(&line)?);
            }
            self.offset += length as u64;
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let position = Some(Position(self.offset.to_string()));
        let rows = decode(&self.projected, &rows, &self.path)?;
        Ok(Some(SourceBatch { rows, rejected: Vec::new(), position }))
    }

    fn parse(&self, line: &[u8]) -> Result<Json, ConnectorError> {
        let place = || format!("{} byte offset {}", self.path.display(), self.offset);
        let row = Json::parse(line).map_err(|cause| {
            ConnectorError::data(format!("{}: not a JSON object: {cause}", place()))
        })?;
        let Json::Object(fields) = &row else {
            return Err(ConnectorError::data(format!("{}: not a JSON object: {row}", place())));
        };
        match fields.keys().find(|column| self.schema.field_with_name(column).is_err()) {
            None => Ok(row),
            Some(column) => {
                let columns: Vec<&str> =
                    self.schema.fields().iter().map(|field| field.name().as_str()).collect();
                Err(ConnectorError::data(format!(
                    "{}: there is no column `{column}`; columns are {}",
                    place(),
                    columns.join(", ")
                )))
            }
        }
    }
}

fn decode(schema: &SchemaRef, rows: &[Json], path: &Path) -> Result<RecordBatch, ConnectorError> {
    decode_given(schema, rows).map_err(|(row, reason)| {
        ConnectorError::data(format!(
            "a row of {} does not fit the columns: {reason}: {}",
            path.display(),
            rows[row]
        ))
    })
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, TimeUnit};
    use futures::TryStreamExt;
    use std::io::Write;

    use super::*;

    fn file(lines: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(lines.as_bytes()).expect("written");
        file
    }

    fn schema() -> Schema {
        Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        ])
    }

    async fn read(
        source: &GivenSource,
        from: Option<&Position>,
    ) -> Result<Vec<SourceBatch>, ConnectorError> {
        let request = ScanRequest::default();
        let split = source.splits(&request, 1).await?.remove(0);
        source.open(&split, &request, from).await?.try_collect().await
    }

    #[tokio::test]
    async fn rows_after_a_position_are_the_rest() {
        let lines: String = (0..3000)
            .map(|id| format!("{{\"id\": {id}, \"at\": \"2024-01-01T00:00:00\"}}\n"))
            .collect();
        let file = file(&lines);
        let source = GivenSource::with_schema(file.path(), &schema());
        let all = read(&source, None).await.expect("readable");
        assert_eq!(all.iter().map(|batch| batch.rows.num_rows()).sum::<usize>(), 3000);
        let rest = read(&source, all[0].position.as_ref()).await.expect("readable");
        assert_eq!(rest.len(), all.len() - 1);
        assert_eq!(rest[0].rows, all[1].rows);
    }

    #[tokio::test]
    async fn unknown_column_and_wrong_type_name_the_row() {
        let misspelled = file("{\"idd\": 1}\n");
        let error = read(&GivenSource::with_schema(misspelled.path(), &schema()), None).await;
        let message = error.expect_err("no such column").message;
        assert!(message.ends_with("there is no column `idd`; columns are id, at"), "{message}");
        let wrong = file("{\"id\": 1}\n{\"id\": \"x\"}\n");
        let error = read(&GivenSource::with_schema(wrong.path(), &schema()), None).await;
        let message = error.expect_err("not a number").message;
        assert!(
            message.contains("does not fit the columns") && message.ends_with("{\"id\":\"x\"}"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn numbers_keep_their_digits() {
        let price = Field::new("price", DataType::Decimal128(38, 20), true);
        let schema = Schema::new(vec![price]);
        let exact = file("{\"price\": 123456789012345678.12345678901234567891}\n");
        let batches = read(&GivenSource::with_schema(exact.path(), &schema), None).await;
        let column = batches.expect("readable")[0].rows.column(0).to_data();
        assert_eq!(column.buffer::<i128>(0)[0], 12_345_678_901_234_567_812_345_678_901_234_567_891);
        let longer = file("{\"price\": 0.123456789012345678901}\n");
        let error = read(&GivenSource::with_schema(longer.path(), &schema), None).await;
        let message = error.expect_err("one digit too many").message;
        assert!(message.contains("does not fit decimal(38,20) exactly"), "{message}");
    }

    #[test]
    fn columns_are_inferred_from_all_rows() {
        let file = file("{\"a\": 1}\n{\"a\": 2.5, \"b\": \"x\"}\n");
        let source = GivenSource::inferred(file.path()).expect("inferred");
        let types: Vec<&DataType> =
            source.schema.fields().iter().map(|field| field.data_type()).collect();
        assert_eq!(types, [&DataType::Float64, &DataType::Utf8]);
    }
}
