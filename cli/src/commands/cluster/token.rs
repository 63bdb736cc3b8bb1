//! `weir cluster token create|list|revoke`: who may use a cluster.

use std::process::ExitCode;

use serde::Serialize;
use weir_proto::v1;

use crate::args::{Global, Output, TokenCommand, TokenRole};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    role: &'static str,
    created_at: String,
}

pub(super) async fn token(global: &Global, command: TokenCommand) -> Result<ExitCode, Failure> {
    let is_json = global.output == Output::Json;
    match command {
        TokenCommand::Create { name, role, cluster } => {
            let role = match role {
                TokenRole::Viewer => v1::TokenRole::Viewer,
                TokenRole::Operator => v1::TokenRole::Operator,
                TokenRole::Admin => v1::TokenRole::Admin,
            };
            let token = Client::required(&cluster)?.create_token(&name, role).await?;
            if is_json {
                let role = shown(role);
                output::json(&serde_json::json!({ "name": name, "role": role, "token": token }))?;
            } else {
                // Alone on standard output, for `> FILE`.
                output::line(&token)?;
                eprintln!("keep it: the cluster knows only its hash");
            }
        }
        TokenCommand::List { cluster } => {
            let tokens = Client::required(&cluster)?.tokens().await?;
            let tokens = tokens.into_iter().map(|token| Listed {
                role: shown(token.role()),
                name: token.name,
                created_at: token.created_at,
            });
            let tokens: Vec<Listed> = tokens.collect();
            if is_json {
                output::json(&tokens)?;
            } else {
                let rows = tokens.into_iter();
                let rows =
                    rows.map(|token| vec![token.name, token.role.to_owned(), token.created_at]);
                output::table(&["TOKEN", "ROLE", "CREATED"], rows.collect())?;
            }
        }
        TokenCommand::Revoke { name, cluster } => {
            Client::required(&cluster)?.revoke_token(&name).await?;
            if is_json {
                output::json(&serde_json::json!({ "name": name, "revoked": true }))?;
            } else {
                output::line(&format!("token {name} is worth nothing from now on"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(role: v1::TokenRole) -> &'static str {
    match role {
        v1::TokenRole::Unspecified => "",
        v1::TokenRole::Viewer => "viewer",
        v1::TokenRole::Operator => "operator",
        v1::TokenRole::Admin => "admin",
    }
}
