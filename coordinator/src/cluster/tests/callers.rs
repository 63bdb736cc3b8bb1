//! Who calls: what he may not do, and how much he may ask for.

use std::convert::Infallible;
use std::num::{NonZeroU32, NonZeroUsize};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer as _, Service};
use weir_ledger::{CreateToken, Role};

use super::*;
use crate::cluster::access::{Bootstrap, hash};
use crate::cluster::access_layer::Access;
use crate::cluster::audit_log::Refusals;
use crate::cluster::quota::{ClientLimits, Quotas};

/// Answers everything, with nothing, once it may.
#[derive(Clone, Debug)]
struct Willing(watch::Receiver<bool>);

impl Service<Request<Body>> for Willing {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let mut may = self.0.clone();
        async move {
            let _ = may.wait_for(|may| *may).await;
            Ok(Response::new(Body::empty()))
        }
        .boxed()
    }
}

async fn call(access: &Access, path: &str, token: &str) -> Code {
    call_with(access, path, token, "60S", Willing(watch::channel(true).1)).await
}

async fn call_with(
    access: &Access,
    path: &str,
    token: &str,
    timeout: &str,
    inner: Willing,
) -> Code {
    let request = Request::builder()
        .uri(format!("http://here{path}"))
        .header("authorization", format!("Bearer {token}"))
        .header("grpc-timeout", timeout)
        .body(Body::empty())
        .expect("it is a request");
    let answer = access.layer(inner).call(request).await.expect("it is infallible");
    Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
}

/// With a token of this role, whose secret is its name.
async fn access(node: &Arc<Node>, name: &str, role: Role, limits: ClientLimits) -> Access {
    let leading = node.is_leading().expect("it leads");
    let (epoch, name, hash) = (leading.epoch, name.to_owned(), hash(name));
    let create = CreateToken { epoch, name, role, hash, at: Utc::now() };
    leading.append(Command::CreateToken(create)).await.expect("the ledger is there");
    Access {
        node: Arc::clone(node),
        bootstrap: Bootstrap(None),
        quotas: Quotas::new(limits),
        refusals: Refusals::default(),
        is_open: false,
    }
}

fn limits(requests_per_second: u32, calls_at_once: usize) -> ClientLimits {
    ClientLimits {
        requests_per_second: NonZeroU32::new(requests_per_second).expect("it is not zero"),
        calls_at_once: NonZeroUsize::new(calls_at_once).expect("it is not zero"),
    }
}

#[tokio::test]
async fn who_is_refused_is_limited_and_fills_no_audit_log() {
    let place = Place::new().await;
    let (node, _serving) = serving(&place, 1);
    wait_until("it leads", || node.is_leading().is_some()).await;
    let leading = node.is_leading().expect("it leads");
    let access = access(&node, "eve", Role::Viewer, limits(20, 5)).await;
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
        codes.push(call(&access, &long, "eve").await);
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
    assert_eq!(call(&access, &long, "nobody").await, Code::Unauthenticated);
}

/// His deadline is over while the refusal is noted.
#[tokio::test]
async fn who_goes_away_at_once_hides_none_of_his_later_refusals() {
    let place = Place::new().await;
    let (node, _serving) = serving(&place, 1);
    wait_until("it leads", || node.is_leading().is_some()).await;
    let leading = node.is_leading().expect("it leads");
    let access = access(&node, "eve", Role::Viewer, limits(10_000, 100)).await;
    let cancel = "/weir.v1.Runs/Cancel";
    let request = Request::builder()
        .uri(format!("http://here{cancel}"))
        .header("authorization", "Bearer eve")
        .body(Body::empty())
        .expect("it is a request");
    let calling = access.layer(Willing(watch::channel(true).1)).call(request);
    // As far as the first wait, which is that for the ledger.
    drop(futures::future::poll_immediate(calling).await);
    for _ in 0..10 {
        assert_eq!(call(&access, cancel, "eve").await, Code::PermissionDenied);
    }
    let all_noted = async {
        loop {
            let noted = leading.with_ledger(|ledger| {
                ledger.client_refusals.iter().map(|refusal| refusal.times).sum::<u32>()
            });
            if noted.await >= 10 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_noted).await.expect("all are noted");
}

/// As one that waits for tasks to stop.
#[tokio::test]
async fn a_change_that_goes_on_behind_its_deadline_is_still_a_call_of_its_client() {
    let place = Place::new().await;
    let (node, _serving) = serving(&place, 1);
    wait_until("it leads", || node.is_leading().is_some()).await;
    let access = access(&node, "olga", Role::Operator, limits(10_000, 1)).await;
    let (end, may) = watch::channel(false);
    let cancel = "/weir.v1.Runs/Cancel";
    let cut_off = call_with(&access, cancel, "olga", "1m", Willing(may)).await;
    assert_eq!(cut_off, Code::DeadlineExceeded);
    assert_eq!(call(&access, cancel, "olga").await, Code::ResourceExhausted);
    end.send_replace(true);
    let ended = async {
        while call(&access, cancel, "olga").await != Code::Ok {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it comes to its end");
}
