//! Ends a run with `commit: run`: everything that was staged becomes visible in one transaction.

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::books::{Books, Entry};
use super::catalog::run;
use super::connect::Server;
use super::error::classify;
use super::plan::{Plan, Route};
use super::quote::{self, TableName};
use super::writer::commit_entry;
use crate::{ConnectorError, ErrorKind, Manifest};

/// How long the swap waits for readers to let go of the table.
const LOCK_SECONDS: u32 = 60;

/// Shows all batches. Does nothing if the ledger says that it has been done.
pub(super) async fn commit_run(
    server: &Server,
    books: &Books,
    plan: &Plan,
    manifests: &[Manifest],
    epoch: u64,
) -> Result<(), ConnectorError> {
    let table = plan.table_name();
    let attempt = format!("commit the run to {table} at {server}");
    let failed = |cause| classify(&attempt, cause);
    let named = server.with_application_name(&books.session_name(epoch));
    let mut connection = named.connect().await?;
    let entry = Entry::whole_run(manifests, epoch);
    // Ends what a predecessor has left open; the transaction below then raises the fence for good.
    books.take_over(&mut connection, server, epoch).await?;
    run(&mut connection, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        .await
        .map_err(failed)?;
    run(&mut connection, &format!("SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        .await
        .map_err(failed)?;
    run(&mut connection, &books.lock_statement()).await.map_err(failed)?;
    books.raise_with_commit(&mut connection, server, epoch).await?;
    if books.is_booked(&mut connection, server, entry).await? {
        // The fence stays raised.
        run(&mut connection, "COMMIT").await.map_err(failed)?;
        return Ok(());
    }
    let staging = plan.staging_name().ok_or_else(|| {
        ConnectorError::internal(format!("{books} has no staging table to commit from"))
    })?;
    check_staging(&mut connection, server, books, &staging, manifests, entry).await?;
    let is_swapped = plan.route == Route::Swap
        && swap(&mut connection, &table, &staging).await.map_err(failed)?;
    if !is_swapped {
        if matches!(plan.route, Route::Swap | Route::Refill) {
            let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", table.quoted());
            run(&mut connection, &lock).await.map_err(failed)?;
            run(&mut connection, &format!("DELETE FROM {}", table.quoted()))
                .await
                .map_err(failed)?;
        }
        run(&mut connection, &plan.merge_from(&staging.quoted())).await.map_err(failed)?;
    }
    books.book(&mut connection, server, entry).await?;
    commit_entry(connection, server, books, (entry, epoch), &attempt).await
}

/// Every batch must be booked, and the staging table must hold their rows.
async fn check_staging(
    connection: &mut PgConnection,
    server: &Server,
    books: &Books,
    staging: &TableName,
    manifests: &[Manifest],
    entry: Entry,
) -> Result<(), ConnectorError> {
    let (booked, _) = books.batches(connection, server).await?;
    for manifest in manifests {
        let is_booked = booked
            .iter()
            .any(|batch| batch.slice == manifest.slice && batch.sequence == manifest.sequence);
        if !is_booked {
            return Err(ConnectorError::new(
                ErrorKind::Changed,
                format!(
                    "{books}: batch {} of slice {} is not in the target's ledger",
                    manifest.sequence, manifest.slice
                ),
            ));
        }
    }
    let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "SELECT count(*) FROM {}",
        staging.quoted()
    )))
    .persistent(false)
    .fetch_one(connection)
    .await
    .map_err(|cause| classify(format!("count the rows staged in {staging}"), cause))?;
    entry.expect_rows(rows.cast_unsigned()).map_err(|error| {
        ConnectorError::new(
            ErrorKind::Changed,
            format!("staging table {staging} at {server} was changed by somebody else: {error}"),
        )
    })
}

/// Gives the staging table the name, owner, rights and index names of the table, and drops that.
/// Does nothing and returns false if something depends on the table that did not when the run began,
/// or if it has been altered: that would be lost, so its rows are to be replaced instead.
async fn swap(
    connection: &mut PgConnection,
    table: &TableName,
    staging: &TableName,
) -> Result<bool, sqlx::Error> {
    run(connection, &format!("ANALYZE {}", staging.quoted())).await?;
    run(connection, &format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table.quoted())).await?;
    let oid: i64 = sqlx::query_scalar("SELECT $1::regclass::oid::int8")
        .bind(table.quoted())
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if !can_swap(connection, oid).await?
        || shape(connection, table).await? != shape(connection, staging).await?
    {
        return Ok(false);
    }
    let mut statements = rights(connection, table, staging).await?;
    let old = indexes(connection, table).await?;
    let new = indexes(connection, staging).await?;
    statements.push(format!("DROP TABLE {}", table.quoted()));
    statements.push(format!(
        "ALTER TABLE {} RENAME TO {}",
        staging.quoted(),
        quote::identifier(&table.table)
    ));
    // LIKE makes the indexes anew; equal definitions belong together.
    let mut free = new;
    for (name, definition) in old {
        let Some(place) = free.iter().position(|(_, other)| *other == definition) else { continue };
        let (made, _) = free.remove(place);
        if made != name {
            let made = TableName { schema: table.schema.clone(), table: made };
            statements.push(format!(
                "ALTER INDEX {} RENAME TO {}",
                made.quoted(),
                quote::identifier(&name)
            ));
        }
    }
    for statement in statements {
        run(connection, &statement).await?;
    }
    Ok(true)
}

/// Columns, constraints and indexes, without names that a copy of a table has of its own.
async fn shape(
    connection: &mut PgConnection,
    table: &TableName,
) -> Result<Vec<String>, sqlx::Error> {
    let mut shape: Vec<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
           a.attgenerated, a.attidentity, a.attcollation, a.attstorage, \
           pg_get_expr(d.adbin, d.adrelid)) \
         FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped \
         UNION ALL \
         SELECT contype::text || ' ' || pg_get_constraintdef(oid) FROM pg_constraint \
         WHERE conrelid = to_regclass($1) AND contype IN ('c', 'p', 'u', 'x')",
    )
    .bind(table.quoted())
    .persistent(false)
    .fetch_all(&mut *connection)
    .await?;
    shape.extend(indexes(connection, table).await?.into_iter().map(|(_, definition)| definition));
    shape.sort();
    Ok(shape)
}

/// Statements that give `staging` the owner, grants and comment of `table`.
async fn rights(
    connection: &mut PgConnection,
    table: &TableName,
    staging: &TableName,
) -> Result<Vec<String>, sqlx::Error> {
    let staging = staging.quoted();
    let row = sqlx::query(
        "SELECT pg_get_userbyid(relowner)::text AS owner, relowner = current_user::regrole AS is_own, \
         relacl IS NOT NULL AS has_rights, obj_description(oid, 'pg_class') AS comment \
         FROM pg_class WHERE oid = to_regclass($1)",
    )
    .bind(table.quoted())
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    let owner: String = row.get("owner");
    let mut statements = Vec::new();
    if let Some(comment) = row.get::<Option<String>, _>("comment") {
        statements.push(format!("COMMENT ON TABLE {staging} IS {}", quote::text(&comment)));
    }
    if row.get("has_rights") {
        let grants = sqlx::query(
            "SELECT privilege_type::text AS privilege, is_grantable, \
             CASE WHEN grantee = 0 THEN NULL ELSE pg_get_userbyid(grantee)::text END AS grantee \
             FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = to_regclass($1)",
        )
        .bind(table.quoted())
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
        statements.push(format!("REVOKE ALL ON {staging} FROM {}", quote::identifier(&owner)));
        for grant in grants {
            let grantee = match grant.get::<Option<String>, _>("grantee") {
                Some(role) => quote::identifier(&role),
                None => "PUBLIC".to_owned(),
            };
            let option = if grant.get("is_grantable") { " WITH GRANT OPTION" } else { "" };
            let privilege: String = grant.get("privilege");
            statements.push(format!("GRANT {privilege} ON {staging} TO {grantee}{option}"));
        }
    }
    if !row.get::<bool, _>("is_own") {
        statements.push(format!("ALTER TABLE {staging} OWNER TO {}", quote::identifier(&owner)));
    }
    Ok(statements)
}

/// Name and definition (without name and table) of each index.
async fn indexes(
    connection: &mut PgConnection,
    table: &TableName,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT c.relname::text AS name, i.indisprimary::text || i.indisunique::text || \
         regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING ', '') AS definition \
         FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
         WHERE i.indrelid = to_regclass($1) ORDER BY 1",
    )
    .bind(table.quoted())
    .persistent(false)
    .fetch_all(connection)
    .await?;
    Ok(rows.iter().map(|row| (row.get("name"), row.get("definition"))).collect())
}

/// Whether a table can be replaced by another of its name without anything being lost: nothing
/// depends on it (views, foreign keys, sequences, publications, policies, triggers), and it is ours.
/// Otherwise its rows are deleted and inserted instead.
pub(super) async fn can_swap(connection: &mut PgConnection, oid: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT c.relkind = 'r' AND c.relpersistence = 'p' AND c.reloptions IS NULL \
           AND c.reltablespace = 0 AND c.relreplident = 'd' AND c.reloftype = 0 \
           AND NOT c.relrowsecurity AND NOT c.relhastriggers AND NOT c.relhasrules \
           AND NOT c.relispartition AND pg_has_role(c.relowner, 'USAGE') \
           AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'n' AND \
             ((d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid) \
              OR (d.refclassid = 'pg_type'::regclass AND d.refobjid = c.reltype))) \
           AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_class s ON s.oid = d.objid \
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass \
             AND d.refobjid = c.oid AND s.relkind = 'S') \
           AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid OR inhparent = c.oid) \
           AND NOT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' \
             AND (conrelid = c.oid OR confrelid = c.oid)) \
           AND NOT EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = c.oid) \
           AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) \
           AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attacl IS NOT NULL) \
         FROM pg_class c WHERE c.oid = $1::int8::oid",
    )
    .bind(oid)
    .persistent(false)
    .fetch_one(connection)
    .await
}
