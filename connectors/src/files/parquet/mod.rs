//! Parquet files as a source: split by row groups, positioned by row.

mod bounds;
mod chunks;
mod reader;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use weir_spec::ParquetSource;

use crate::files::columns::{Columns, names_of};
use crate::files::listing::{SourceFile, list};
use crate::files::opened::OpenFile;
use crate::files::split::{FileSplit, encode_schema};
use crate::files::stream::{blocking, read_blocking};
use crate::{
    ColumnBounds, ConnectorContext, ConnectorError, Position, ScanRequest, Source,
    SourceDescription, SourceStream, Split,
};
use bounds::Bounds;
use reader::{RowGroups, load_footer, read_row_groups};
use schema::UnifiedSchema;

/// An opened Parquet node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ParquetFiles {
    name: String,
    context: ConnectorContext,
    source: Arc<ParquetSource>,
}

/// Compressed bytes and rows of one row group.
struct GroupSize {
    bytes: u64,
    rows: u64,
}

/// A file and the row groups of its footer.
struct ListedFile {
    file: SourceFile,
    groups: Vec<GroupSize>,
}

/// What all footers together say.
struct Footers {
    listed: Vec<ListedFile>,
    columns: Columns,
}

impl ParquetFiles {
    /// `name` is the node's name, for messages.
    pub fn new(name: &str, source: &ParquetSource, context: &ConnectorContext) -> Self {
        Self { name: name.to_owned(), context: context.clone(), source: Arc::new(source.clone()) }
    }

    fn files(&self) -> Result<Vec<SourceFile>, ConnectorError> {
        let path = self.context.resolve(&self.source.path)?;
        list(&self.context, &path, self.source.hive_partitions)
            .map_err(|error| error.at_source(&self.name))
    }

    /// Reads every footer.
    fn read_footers(&self) -> Result<Footers, ConnectorError> {
        let mut unified = UnifiedSchema::default();
        let mut listed = Vec::new();
        for file in self.files()? {
            let footer = load_footer(&OpenFile::open(&file.path)?, &file.name)?;
            unified.add(&file.name, footer.schema())?;
            let groups = footer
                .metadata()
                .row_groups()
                .iter()
                .map(|group| GroupSize {
                    bytes: u64::try_from(group.compressed_size()).unwrap_or(0).max(1),
                    rows: u64::try_from(group.num_rows()).unwrap_or(0),
                })
                .collect();
            listed.push(ListedFile { file, groups });
        }
        let partitions = listed.first().map_or(&[][..], |listed| &listed.file.partitions);
        let columns = Columns::new(unified.into_schema(), None, partitions)?;
        Ok(Footers { listed, columns })
    }

    fn plan_splits(&self, parallelism: usize) -> Result<Vec<Split>, ConnectorError> {
        let Footers { listed, columns } = self.read_footers()?;
        let schema = encode_schema(&columns.file)?;
        let total: u64 = listed.iter().flat_map(|file| &file.groups).map(|group| group.bytes).sum();
        let target = total.div_ceil(parallelism.max(1) as u64).max(1);
        let mut splits = Vec::new();
        for ListedFile { file, groups } in &listed {
            let mut start = 0;
            while start < groups.len() {
                let mut end = start;
                let mut bytes = 0;
                // Half a row group more than the target is closer to it than half a group less.
                while end < groups.len()
                    && (end == start || bytes + groups[end].bytes / 2 <= target)
                {
                    bytes += groups[end].bytes;
                    end += 1;
                }
                let rows = groups[start..end].iter().map(|group| group.rows).sum();
                let label = if (start, end) == (0, groups.len()) {
                    file.name.clone()
                } else {
                    format!("{} row groups {start}–{}", file.name, end - 1)
                };
                let split = FileSplit::new(file, start as u64, end as u64, Some(schema.clone()));
                splits.push(split.into_split(label, bytes, Some(rows)));
                start = end;
            }
        }
        Ok(splits)
    }

    /// Of the very files that the splits name: another one may have come since.
    fn read_bounds(
        &self,
        splits: &[Split],
    ) -> Result<BTreeMap<String, ColumnBounds>, ConnectorError> {
        let mut bounds = Bounds::default();
        let mut last = None;
        for split in splits {
            let split = FileSplit::from_split(split)?;
            // Those of one file lie one behind the other.
            if last.as_ref() != Some(&split.path) {
                let (file, _watch) = split.open(&self.context)?;
                bounds.add(&load_footer(&file, &split.path)?);
                last = Some(split.path);
            }
        }
        Ok(bounds.into_columns())
    }

    fn row_groups(
        &self,
        split: &FileSplit,
        file: OpenFile,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<RowGroups, ConnectorError> {
        let file_columns = split
            .decode_schema()?
            .ok_or_else(|| ConnectorError::internal("a split has lost its columns"))?;
        let columns = Columns::new(file_columns, None, &split.partitions)?;
        let (first, skip) = match from {
            None => (split.start, 0),
            Some(position) => reader::parse_position(position)?,
        };
        Ok(RowGroups {
            name: split.path.clone(),
            file,
            first,
            skip,
            end: split.end,
            projection: columns.project(request, &split.partitions)?,
        })
    }
}

#[async_trait]
impl Source for ParquetFiles {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        let this = self.clone();
        blocking(move || {
            let Footers { listed, columns } = this.read_footers()?;
            let groups: usize = listed.iter().map(|file| file.groups.len()).sum();
            let mut notes = vec![format!("{} Parquet files, {groups} row groups", listed.len())];
            if !columns.partitions.is_empty() {
                notes.push(format!("partition columns: {}", names_of(&columns.partitions)));
            }
            Ok(SourceDescription {
                schema: columns.schema(),
                resumable: true,
                exact_predicates: Vec::new(),
                repeatable: true,
                notes,
            })
        })
        .await
    }

    async fn splits(
        &self,
        _request: &ScanRequest,
        parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        let this = self.clone();
        blocking(move || this.plan_splits(parallelism)).await
    }

    async fn bounds(
        &self,
        splits: &[Split],
    ) -> Result<BTreeMap<String, ColumnBounds>, ConnectorError> {
        let (this, splits) = (self.clone(), splits.to_vec());
        blocking(move || this.read_bounds(&splits)).await
    }

    async fn open(
        &self,
        split: &Split,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        let (this, split) = (self.clone(), FileSplit::from_split(split)?);
        let (request, from) = (request.clone(), from.cloned());
        let limit = request.limit;
        let (groups, watch) = blocking(move || {
            let (file, watch) = split.open(&this.context)?;
            Ok((this.row_groups(&split, file, &request, from.as_ref())?, watch))
        })
        .await?;
        Ok(read_blocking(limit, watch, move |emitter| read_row_groups(&groups, emitter)))
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        let this = self.clone();
        blocking(move || {
            let files = this.files()?;
            load_footer(&OpenFile::open(&files[0].path)?, &files[0].name)?;
            Ok(format!("{} Parquet files, first {}", files.len(), files[0].name))
        })
        .await
    }
}
