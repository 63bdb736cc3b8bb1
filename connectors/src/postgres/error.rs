//! What a PostgreSQL error means to the caller: SQLSTATE classes as [`ErrorKind`]s.
//!
//! Reference: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".

use sqlx::postgres::PgDatabaseError;

use crate::{ConnectorError, ErrorKind};

const UNAVAILABLE: ErrorKind = ErrorKind::Unavailable { retry_after: None, status: None };

/// SQLSTATE of an error that the server sent, if it was one.
pub(super) fn sql_state(error: &sqlx::Error) -> Option<&str> {
    database_error(error).map(PgDatabaseError::code)
}

fn database_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
}

/// Classifies `cause`. `attempt` continues "failed to": `copy rows into public.orders at
/// db.example.com:5432/shop`. Statements and connection URLs never reach the message.
pub(super) fn classify(attempt: impl std::fmt::Display, cause: sqlx::Error) -> ConnectorError {
    if let Some(error) = database_error(&cause) {
        let kind = kind_of_state(error.code());
        let message = format!("failed to {attempt}: {}", describe(error));
        // The cause is not kept: its own rendering may repeat rows without the context above.
        return ConnectorError::new(kind, message);
    }
    let kind = match &cause {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => UNAVAILABLE,
        sqlx::Error::Tls(_) => ErrorKind::Denied,
        sqlx::Error::Configuration(_) => ErrorKind::Config,
        // A connection that breaks inside a message shows as a protocol error.
        sqlx::Error::Protocol(_) => UNAVAILABLE,
        _ => ErrorKind::Internal,
    };
    match cause {
        sqlx::Error::Io(io) => ConnectorError::caused(
            kind,
            format!("failed to {attempt}: the connection is broken or cannot be made"),
            io,
        ),
        other => ConnectorError::caused(kind, format!("failed to {attempt}"), other),
    }
}

fn kind_of_state(code: &str) -> ErrorKind {
    match code {
        "42501" => ErrorKind::Denied,
        // Undefined table, schema, database, column, function.
        "42P01" | "3F000" | "3D000" | "42703" | "42883" => ErrorKind::NotFound,
        // A lock or statement timeout, or an administrator's cancel.
        "55P03" | "57014" | "55006" => UNAVAILABLE,
        // disk_full, out_of_memory, program limits
        "53100" | "53200" => ErrorKind::Exhausted,
        _ => match code.get(..2).unwrap_or_default() {
            "08" | "40" | "53" | "57" => UNAVAILABLE,
            "28" => ErrorKind::Denied,
            "22" | "23" | "21" => ErrorKind::Data,
            "42" | "25" | "0A" | "2B" => ErrorKind::Config,
            "54" => ErrorKind::Exhausted,
            "58" => UNAVAILABLE,
            _ => ErrorKind::Internal,
        },
    }
}

/// The server's words, with column, constraint and key where it names them.
fn describe(error: &PgDatabaseError) -> String {
    let mut text = error.message().to_owned();
    if let Some(detail) = error.detail() {
        text.push_str(&format!(" ({})", detail.trim_end_matches('.')));
    }
    if let Some(column) = error.column().or_else(|| column_of_context(error.r#where())) {
        let named = format!("\"{column}\"");
        if !text.contains(&named) {
            text.push_str(&format!(", column \"{column}\""));
        }
    }
    if let Some(hint) = error.hint() {
        text.push_str(&format!("; hint: {}", hint.trim_end_matches('.')));
    }
    match error.code() {
        "42501" => text.push_str("; ask the owner of the database to GRANT the missing right"),
        "28P01" | "28000" => {
            text.push_str("; check user and password of the connection's url, and pg_hba.conf")
        }
        "3D000" => text.push_str("; check the database name at the end of the connection's url"),
        "3F000" => text.push_str("; run CREATE SCHEMA, or name another schema in `table`"),
        "53100" => text.push_str("; make room on the server's disk"),
        "22P05" => text.push_str(
            "; PostgreSQL cannot store the NUL character: remove it in SQL before the sink",
        ),
        "22001" | "22003" => text.push_str(
            "; filter such values out or `validate` them before the sink, or give the column a wider \
             type",
        ),
        "23502" => text.push_str(
            "; `validate` the column with not_null, fill it with coalesce in SQL, or allow null in the \
             table",
        ),
        "23505" => text.push_str("; write `mode: upsert`, or add a `deduplicate` transform"),
        "23503" | "23514" => {
            text.push_str("; `validate` the rows before the sink, or change the constraint")
        }
        _ => {}
    }
    format!("{text} [SQLSTATE {}]", error.code())
}

/// `COPY orders, line 3, column amount` names the column only in the context.
fn column_of_context(context: Option<&str>) -> Option<&str> {
    let line = context?.lines().find(|line| line.starts_with("COPY "))?;
    let (_, column) = line.split_once(", column ")?;
    Some(column.split(": ").next().unwrap_or(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_states_say_what_the_caller_can_do() {
        for (code, kind) in [
            ("08006", UNAVAILABLE),
            ("57P01", UNAVAILABLE),
            ("53300", UNAVAILABLE),
            ("40P01", UNAVAILABLE),
            ("28P01", ErrorKind::Denied),
            ("42501", ErrorKind::Denied),
            ("42P01", ErrorKind::NotFound),
            ("3D000", ErrorKind::NotFound),
            ("22003", ErrorKind::Data),
            ("23505", ErrorKind::Data),
            ("53100", ErrorKind::Exhausted),
            ("42601", ErrorKind::Config),
        ] {
            assert_eq!(kind_of_state(code), kind, "{code}");
        }
    }

    #[test]
    fn the_column_is_found_in_the_context_of_copy() {
        assert_eq!(column_of_context(Some("COPY t, line 3, column amount")), Some("amount"));
        assert_eq!(column_of_context(Some("COPY t, line 3, column a: \"x\"")), Some("a"));
        assert_eq!(column_of_context(Some("PL/pgSQL function f()")), None);
    }
}
