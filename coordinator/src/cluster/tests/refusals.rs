//! Who may change nothing, and asks for changes all the same.

use std::convert::Infallible;
use std::num::{NonZeroU32, NonZeroUsize};
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer as _, Service};
use weir_ledger::{CreateToken, Role};

use super::*;
use crate::cluster::access::{Bootstrap, hash};
use crate::cluster::access_layer::Access;
use crate::cluster::audit_log::Refusals;
use crate::cluster::quota::{ClientLimits, Quotas};

/// Answers everything, with nothing.
#[derive(Clone, Debug)]
struct Willing;

impl Service<Request<Body>> for Willing {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        std::future::ready(Ok(Response::new(Body::empty())))
    }
}

async fn call(access: &Access, path: &str, token: &str) -> Code {
    let request = Request::builder()
        .uri(format!("http://here{path}"))
        .header("authorization", format!("Bearer {token}"))
        .body(Body::empty())
        .expect("it is a request");
    let answer = access.layer(Willing).call(request).await.expect("it is infallible");
    Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
}

#[tokio::test]
async fn who_is_refused_is_limited_and_fills_no_audit_log() {
    let place = Place::new().await;
    let (node, _serving) = serving(&place, 1);
    wait_until("it leads", || node.is_leading().is_some()).await;
    let leading = node.is_leading().expect("it leads");
    let (epoch, name, role) = (leading.epoch, "eve".to_owned(), Role::Viewer);
    let create = CreateToken { epoch, name, role, hash: hash("eves"), at: Utc::now() };
    leading.append(Command::CreateToken(create)).await.expect("the ledger is there");
    let limits = ClientLimits {
        requests_per_second: NonZeroU32::new(20).expect("it is not zero"),
        calls_at_once: NonZeroUsize::new(5).expect("it is not zero"),
    };
    let access = Access {
        node: Arc::clone(&node),
        bootstrap: Bootstrap(None),
        quotas: Quotas::new(limits),
        refusals: Refusals::default(),
        is_open: false,
    };
    let log = || async {
        leading
            .with_ledger(|ledger| {
                (ledger.client_changes.len(), Vec::from(ledger.client_refusals.clone()))
            })
            .await
    };
    let long = format!("/weir.v1.X/{}", "x".repeat(15_000));
    let mut codes = Vec::new();
    for _ in 0..500 {
        codes.push(call(&access, &long, "eves").await);
    }
    let of = |code| codes.iter().filter(|known| **known == code).count();
    let (denied, too_many) = (of(Code::PermissionDenied), of(Code::ResourceExhausted));
    assert!(denied >= 20 && too_many > 0 && denied + too_many == 500, "{denied} {too_many}");
    // Those of the last second are still to be noted.
    let all_noted = async {
        loop {
            let (changes, refusals) = log().await;
            if refusals.iter().map(|refusal| refusal.times as usize).sum::<usize>() >= denied {
                return (changes, refusals);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let noted = tokio::time::timeout(Duration::from_secs(30), all_noted).await;
    let (changes, refusals) = noted.expect("all are noted");
    assert_eq!((changes, refusals.len()), (0, 1));
    assert_eq!((refusals[0].who.as_str(), refusals[0].what.as_str()), ("eve", "unknown"));
    assert_eq!(refusals[0].times as usize, denied);
    assert_eq!(call(&access, &long, "nobody's").await, Code::Unauthenticated);
}
