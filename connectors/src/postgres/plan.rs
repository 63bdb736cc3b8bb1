//! How the rows of a sink travel to their table: decided by `prepare`, frozen, and the same for
//! every task.

use serde::{Deserialize, Serialize};

use super::quote::{self, TableName};
use super::target::{ORDER_COLUMN, WrittenColumn};

/// The payload of a prepared sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub schema: String,
    pub table: String,
    pub columns: Vec<WrittenColumn>,
    /// Of an upsert; empty otherwise.
    pub key: Vec<String>,
    pub route: Route,
    /// The run's staging table, where there is one.
    pub staging: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Route {
    /// `COPY` into the table itself.
    Direct,
    /// `COPY` into a temporary table, then merged into the table in the same transaction.
    Batch,
    /// `COPY` into the staging table; added or merged at the end of the run.
    Run,
    /// As `Run`, but the table's rows are deleted in the same transaction.
    Refill,
    /// `COPY` into a table of the same shape, which takes the name at the end of the run.
    Swap,
}

impl Plan {
    pub(super) const BATCH_TABLE: &str = "pg_temp.weir_batch";

    pub(super) fn table_name(&self) -> TableName {
        TableName { schema: Some(self.schema.clone()), table: self.table.clone() }
    }

    pub(super) fn staging_name(&self) -> Option<TableName> {
        let table = self.staging.clone()?;
        Some(TableName { schema: Some(self.schema.clone()), table })
    }

    /// Whether staged rows carry their order of arrival: the last one of a key wins.
    pub(super) fn has_order(&self) -> bool {
        !self.key.is_empty()
    }

    fn names(&self) -> String {
        quote::identifiers(self.columns.iter().map(|column| column.name.as_str()))
    }

    /// Columns of a staging table, as in `CREATE TABLE`.
    pub(super) fn staged_columns(&self) -> String {
        let mut columns: Vec<_> = self
            .columns
            .iter()
            .map(|column| format!("{} {}", quote::identifier(&column.name), column.staged_type()))
            .collect();
        if self.has_order() {
            columns.push(format!("{} bigint", quote::identifier(ORDER_COLUMN)));
        }
        columns.join(", ")
    }

    /// Where rows are copied to.
    pub(super) fn copy_statement(&self) -> String {
        let into = match (self.route, self.staging_name()) {
            (Route::Batch, _) => Self::BATCH_TABLE.to_owned(),
            (Route::Run | Route::Refill | Route::Swap, Some(staging)) => staging.quoted(),
            _ => self.table_name().quoted(),
        };
        let mut names = self.names();
        if self.has_order() {
            names.push_str(&format!(", {}", quote::identifier(ORDER_COLUMN)));
        }
        format!("COPY {into} ({names}) FROM STDIN (FORMAT BINARY)")
    }

    /// Ends a batch that went into the temporary table.
    pub(super) fn merge_batch(&self) -> Option<String> {
        (self.route == Route::Batch).then(|| self.merge_from(Self::BATCH_TABLE))
    }

    /// Inserts the rows of a staging table; with a key the last row of each key, over what is there.
    /// Keys are taken in order, so that two transactions lock rows alike and cannot deadlock.
    pub(super) fn merge_from(&self, staging: &str) -> String {
        let expressions =
            self.columns.iter().map(WrittenColumn::expression).collect::<Vec<_>>().join(", ");
        let into = format!("INSERT INTO {} ({})", self.table_name().quoted(), self.names());
        if self.key.is_empty() {
            return format!("{into} SELECT {expressions} FROM {staging}");
        }
        let is_key = |column: &&WrittenColumn| self.key.contains(&column.name);
        let key = quote::identifiers(self.key.iter().map(String::as_str));
        let sorted = self
            .columns
            .iter()
            .filter(is_key)
            .map(WrittenColumn::expression)
            .collect::<Vec<_>>()
            .join(", ");
        let others: Vec<_> = self
            .columns
            .iter()
            .filter(|column| !is_key(column))
            .map(|column| {
                let name = quote::identifier(&column.name);
                format!("{name} = excluded.{name}")
            })
            .collect();
        let action = if others.is_empty() {
            "NOTHING".to_owned()
        } else {
            format!("UPDATE SET {}", others.join(", "))
        };
        format!(
            "{into} SELECT DISTINCT ON ({sorted}) {expressions} FROM {staging} ORDER BY {sorted}, {} \
             DESC ON CONFLICT ({key}) DO {action}",
            quote::identifier(ORDER_COLUMN)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::types::Wire;

    fn plan(key: &[&str], route: Route) -> Plan {
        let column = |name: &str, wire, sent_as: Option<&str>| WrittenColumn {
            name: name.to_owned(),
            declared: if sent_as.is_some() { "inet" } else { "bigint" }.to_owned(),
            wire,
            sent_as: sent_as.map(str::to_owned),
        };
        Plan {
            schema: "public".to_owned(),
            table: "t".to_owned(),
            columns: vec![column("id", Wire::Int8, None), column("at", Wire::Text, Some("text"))],
            key: key.iter().map(|&name| name.to_owned()).collect(),
            route,
            staging: None,
        }
    }

    #[test]
    fn rows_without_a_key_are_copied_straight_into_the_table() {
        assert_eq!(
            plan(&[], Route::Direct).copy_statement(),
            "COPY \"public\".\"t\" (\"id\", \"at\") FROM STDIN (FORMAT BINARY)"
        );
    }

    #[test]
    fn a_merge_keeps_the_last_row_of_each_key_and_locks_keys_in_order() {
        assert_eq!(
            plan(&["id"], Route::Batch).merge_batch().expect("batches are merged"),
            "INSERT INTO \"public\".\"t\" (\"id\", \"at\") SELECT DISTINCT ON (\"id\") \"id\", \
             \"at\"::inet FROM pg_temp.weir_batch ORDER BY \"id\", \"_weir_order\" DESC ON CONFLICT \
             (\"id\") DO UPDATE SET \"at\" = excluded.\"at\""
        );
    }
}
