//! Who may call what. The decision is pure; [`layer`](super::access_layer) asks it for every call.

use std::collections::BTreeMap;

use tonic::Status;
use weir_ledger::{Role, TokenFacts};

/// A secret that whoever starts the coordinators gives them, so that the first client can make tokens.
#[derive(Clone)]
pub(super) struct Bootstrap(pub(super) Option<String>);

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Bootstrap(given)" } else { "Bootstrap(none)" })
    }
}

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needed {
    Nothing,
    /// A certificate that the cluster's authority has signed.
    Node,
    Token(Role),
}

/// By the path of a gRPC method. What is not listed here is for admins only, so that a new method is
/// never open by mistake.
pub(super) fn needed(path: &str) -> Needed {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (service, method) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match (service, method) {
        // Whether the process lives: for whatever keeps it running.
        ("grpc.health.v1.Health", _) => Needed::Nothing,
        ("weir.internal.v1.Raft" | "weir.internal.v1.Executors", _) => Needed::Node,
        ("grpc.reflection.v1.ServerReflection", _)
        | ("weir.v1.Cluster", "Status")
        | ("weir.v1.Runs", "Get" | "List" | "Watch" | "Audit" | "DeadLetters") => {
            Needed::Token(Role::Viewer)
        }
        ("weir.v1.Runs", "Submit" | "Cancel" | "Retry") => Needed::Token(Role::Operator),
        _ => Needed::Token(Role::Admin),
    }
}

/// What is known about a caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'call> {
    pub(super) has_certificate: bool,
    /// The `authorization` header.
    pub(super) authorization: Option<&'call str>,
}

/// The name under which the call is logged, or why it is refused.
pub(super) fn check<'known>(
    path: &str,
    caller: Caller<'_>,
    tokens: &'known BTreeMap<String, TokenFacts>,
    bootstrap: &Bootstrap,
) -> Result<&'known str, Status> {
    let role = match needed(path) {
        Needed::Nothing => return Ok("anybody"),
        Needed::Node if caller.has_certificate => return Ok("a node"),
        Needed::Node => {
            return Err(Status::unauthenticated(
                "this is for nodes of the cluster: a certificate of its authority is missing",
            ));
        }
        Needed::Token(role) => role,
    };
    let Some(header) = caller.authorization else {
        return Err(Status::unauthenticated(
            "a token is missing: send it as `authorization: Bearer TOKEN`",
        ));
    };
    let token = header.strip_prefix("Bearer ").or_else(|| header.strip_prefix("bearer "));
    let Some(token) = token.map(str::trim).filter(|token| !token.is_empty()) else {
        return Err(Status::unauthenticated("the authorization is not `Bearer TOKEN`"));
    };
    let (name, has) = match known(token, tokens, bootstrap) {
        Some(known) => known,
        None => return Err(Status::unauthenticated("the token is not known")),
    };
    if has < role {
        return Err(Status::permission_denied(format!(
            "token `{name}` has the role {}, and this needs {}",
            shown(has),
            shown(role)
        )));
    }
    Ok(name)
}

/// Compares hashes: how long that takes says nothing about a token.
fn known<'known>(
    token: &str,
    tokens: &'known BTreeMap<String, TokenFacts>,
    bootstrap: &Bootstrap,
) -> Option<(&'known str, Role)> {
    let hash = hash(token);
    if bootstrap.0.as_ref().is_some_and(|given| self::hash(given) == hash) {
        return Some(("bootstrap", Role::Admin));
    }
    (tokens.iter())
        .find(|(_, facts)| facts.hash == hash)
        .map(|(name, facts)| (name.as_str(), facts.role))
}

pub(super) fn hash(token: &str) -> String {
    blake3::hash(token.as_bytes()).to_hex().to_string()
}

pub(super) fn shown(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    const SUBMIT: &str = "/weir.v1.Runs/Submit";
    const GET: &str = "/weir.v1.Runs/Get";
    const WORK: &str = "/weir.internal.v1.Executors/Work";

    fn code(path: &str, has_certificate: bool, authorization: Option<&str>) -> Option<Code> {
        let facts = |role, token: &str| TokenFacts {
            role,
            hash: hash(token),
            created_at: chrono::DateTime::UNIX_EPOCH,
        };
        let tokens = BTreeMap::from([
            ("eve".to_owned(), facts(Role::Viewer, "v")),
            ("olga".to_owned(), facts(Role::Operator, "o")),
        ]);
        let caller = Caller { has_certificate, authorization };
        let bootstrap = Bootstrap(Some("first".to_owned()));
        check(path, caller, &tokens, &bootstrap).err().map(|status| status.code())
    }

    #[test]
    fn without_a_token_there_is_nothing() {
        for path in [SUBMIT, GET, WORK, "/weir.v1.Cluster/Status", "/some.Thing/New", "", "/"] {
            assert_eq!(code(path, false, None), Some(Code::Unauthenticated), "{path}");
        }
        for wrong in ["", "Bearer", "Bearer ", "Basic djp2", "Bearer w", "v", "Bearer v o"] {
            assert_eq!(code(GET, false, Some(wrong)), Some(Code::Unauthenticated), "{wrong}");
        }
    }

    #[test]
    fn a_role_does_what_those_below_it_do() {
        assert_eq!(code(GET, false, Some("Bearer v")), None);
        assert_eq!(code(SUBMIT, false, Some("Bearer v")), Some(Code::PermissionDenied));
        assert_eq!(code(GET, false, Some("Bearer o")), None);
        assert_eq!(code(SUBMIT, false, Some("Bearer o")), None);
        let create = "/weir.v1.Cluster/CreateToken";
        assert_eq!(code(create, false, Some("Bearer o")), Some(Code::PermissionDenied));
        assert_eq!(code(create, false, Some("Bearer first")), None);
        assert_eq!(code("/some.Thing/New", false, Some("Bearer o")), Some(Code::PermissionDenied));
    }

    #[test]
    fn nodes_have_certificates_and_clients_tokens() {
        assert_eq!(code(WORK, true, None), None);
        assert_eq!(code(WORK, false, Some("Bearer first")), Some(Code::Unauthenticated));
        assert_eq!(code(GET, true, None), Some(Code::Unauthenticated));
    }

    #[test]
    fn without_a_bootstrap_token_nobody_has_it() {
        let caller = Caller { has_certificate: false, authorization: Some("Bearer ") };
        let (tokens, bootstrap) = (BTreeMap::new(), Bootstrap(None));
        let checked = check(GET, caller, &tokens, &bootstrap);
        assert_eq!(checked.unwrap_err().code(), Code::Unauthenticated);
    }
}
