//! Who may call what. The decision is pure; [`layer`](super::access_layer) asks it for every call.

use std::collections::BTreeMap;

use tonic::Status;
use tonic::transport::CertificateDer;
use weir_executor::identity;
use weir_ledger::{Role, TokenFacts};

/// A secret that whoever starts the coordinators gives them, so that the first client can make tokens.
#[derive(Clone)]
pub(super) struct Bootstrap(pub(super) Option<String>);

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Bootstrap(given)" } else { "Bootstrap(none)" })
    }
}

/// Who calls without having to say who he is.
pub(super) const ANYBODY: &str = "anybody";

/// Who has the secret of [`Bootstrap`].
pub(super) const BOOTSTRAP: &str = "bootstrap";

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needed {
    Nothing,
    /// The certificate of a node of this kind, signed by the cluster's authority.
    Node(Kind),
    Token(Role),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Coordinator,
    Executor,
}

/// By the path of a gRPC method. What is not listed here is for admins only, so that a new method is
/// never open by mistake.
pub(super) fn needed(path: &str) -> Needed {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (service, method) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match (service, method) {
        // Whether the process lives: for whatever keeps it running.
        ("grpc.health.v1.Health", _) => Needed::Nothing,
        ("weir.internal.v1.Raft", _) => Needed::Node(Kind::Coordinator),
        ("weir.internal.v1.Executors", _) => Needed::Node(Kind::Executor),
        ("grpc.reflection.v1.ServerReflection", _)
        | ("weir.v1.Cluster", "Status")
        | (
            "weir.v1.Runs",
            "Get" | "List" | "ListTasks" | "Watch" | "Audit" | "DeadLetters" | "Logs",
        )
        | ("weir.v1.Pipelines", "List" | "ListVersions")
        | ("weir.v1.State", "Get")
        | ("weir.v1.Backfills", "Get" | "List" | "Watch" | "ListWindows" | "Audit") => {
            Needed::Token(Role::Viewer)
        }
        ("weir.v1.Runs", "Submit" | "Cancel" | "Retry")
        | ("weir.v1.DeadLetters", "Replay")
        // What a file says may be more than everybody should see: a literal password among it.
        | ("weir.v1.Pipelines", "Get" | "Register" | "Delete")
        | ("weir.v1.State", "SetWatermark" | "ResetWatermarks")
        | (
            "weir.v1.Backfills",
            "Create" | "Pause" | "Resume" | "Cancel" | "SetPriority" | "RetryWindows",
        ) => Needed::Token(Role::Operator),
        _ => Needed::Token(Role::Admin),
    }
}

/// What the authority has signed that somebody is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) is_coordinator: bool,
    pub(super) is_executor: bool,
}

impl Named {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self {
            is_coordinator: identity::is_for(certificate, identity::COORDINATOR),
            is_executor: identity::is_for(certificate, identity::EXECUTOR),
        }
    }
}

/// What is known about a caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'call> {
    pub(super) certificate: Option<Named>,
    /// The `authorization` header.
    pub(super) authorization: Option<&'call str>,
}

/// Why a call is refused.
#[derive(Debug)]
pub(super) struct Refused<'known> {
    /// The name of its token, if that is known.
    pub(super) who: Option<&'known str>,
    pub(super) status: Status,
}

impl From<Status> for Refused<'_> {
    fn from(status: Status) -> Self {
        Self { who: None, status }
    }
}

/// The name under which the call is logged, or why it is refused.
pub(super) fn check<'known>(
    path: &str,
    caller: Caller<'_>,
    tokens: &'known BTreeMap<String, TokenFacts>,
    bootstrap: &Bootstrap,
) -> Result<&'known str, Refused<'known>> {
    let role = match needed(path) {
        Needed::Nothing => return Ok(ANYBODY),
        Needed::Node(kind) => return Ok(check_node(kind, caller.certificate)?),
        Needed::Token(role) => role,
    };
    let Some(header) = caller.authorization else {
        return Err(Status::unauthenticated(
            "a token is missing: send it as `authorization: Bearer TOKEN`",
        )
        .into());
    };
    let token = header.strip_prefix("Bearer ").or_else(|| header.strip_prefix("bearer "));
    let Some(token) = token.map(str::trim).filter(|token| !token.is_empty()) else {
        return Err(Status::unauthenticated("the authorization is not `Bearer TOKEN`").into());
    };
    let (name, has) = match known(token, tokens, bootstrap) {
        Some(known) => known,
        None => return Err(Status::unauthenticated("the token is not known").into()),
    };
    if has < role {
        let status = Status::permission_denied(format!(
            "token `{name}` has the role {}, and this needs {}",
            shown(has),
            shown(role)
        ));
        return Err(Refused { who: Some(name), status });
    }
    Ok(name)
}

fn check_node(kind: Kind, certificate: Option<Named>) -> Result<&'static str, Status> {
    let Some(named) = certificate else {
        return Err(Status::unauthenticated(
            "this is for nodes of the cluster: a certificate of its authority is missing",
        ));
    };
    let (is_it, who, name) = match kind {
        Kind::Coordinator => (named.is_coordinator, "a coordinator", identity::COORDINATOR),
        Kind::Executor => (named.is_executor, "an executor", identity::EXECUTOR),
    };
    match is_it {
        true => Ok(who),
        false => Err(Status::permission_denied(format!(
            "this is for {who} of the cluster, and the certificate does not name `{name}`"
        ))),
    }
}

/// Compares hashes: how long that takes says nothing about a token.
fn known<'known>(
    token: &str,
    tokens: &'known BTreeMap<String, TokenFacts>,
    bootstrap: &Bootstrap,
) -> Option<(&'known str, Role)> {
    let hash = hash(token);
    if bootstrap.0.as_ref().is_some_and(|given| self::hash(given) == hash) {
        return Some((BOOTSTRAP, Role::Admin));
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

    const RAFT: &str = "/weir.internal.v1.Raft/AppendEntries";

    fn code(path: &str, is_node: bool, authorization: Option<&str>) -> Option<Code> {
        let executor = Named { is_executor: true, ..Named::default() };
        code_of(path, is_node.then_some(executor), authorization)
    }

    fn code_of(
        path: &str,
        certificate: Option<Named>,
        authorization: Option<&str>,
    ) -> Option<Code> {
        let facts = |role, token: &str| TokenFacts {
            role,
            hash: hash(token),
            created_at: chrono::DateTime::UNIX_EPOCH,
        };
        let tokens = BTreeMap::from([
            ("eve".to_owned(), facts(Role::Viewer, "v")),
            ("olga".to_owned(), facts(Role::Operator, "o")),
        ]);
        let caller = Caller { certificate, authorization };
        let bootstrap = Bootstrap(Some("first".to_owned()));
        check(path, caller, &tokens, &bootstrap).err().map(|refused| refused.status.code())
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
        let text = "/weir.v1.Pipelines/Get";
        assert_eq!(code(text, false, Some("Bearer v")), Some(Code::PermissionDenied));
        assert_eq!(code(text, false, Some("Bearer o")), None);
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
    fn a_node_is_of_the_kind_that_its_certificate_names() {
        let executor = Some(Named { is_executor: true, ..Named::default() });
        let coordinator = Some(Named { is_coordinator: true, ..Named::default() });
        assert_eq!(code_of(RAFT, coordinator, None), None);
        assert_eq!(code_of(RAFT, executor, None), Some(Code::PermissionDenied));
        assert_eq!(code_of(RAFT, None, Some("Bearer first")), Some(Code::Unauthenticated));
        assert_eq!(code_of(WORK, coordinator, None), Some(Code::PermissionDenied));
        for path in [RAFT, WORK] {
            let neither = Some(Named::default());
            assert_eq!(code_of(path, neither, None), Some(Code::PermissionDenied), "{path}");
        }
    }

    #[test]
    fn without_a_bootstrap_token_nobody_has_it() {
        let caller = Caller { certificate: None, authorization: Some("Bearer ") };
        let (tokens, bootstrap) = (BTreeMap::new(), Bootstrap(None));
        let checked = check(GET, caller, &tokens, &bootstrap);
        assert_eq!(checked.unwrap_err().status.code(), Code::Unauthenticated);
    }
}
