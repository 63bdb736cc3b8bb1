//! When something that failed may be tried again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorError, ErrorKind};
use weir_executor::TaskError;
use weir_spec::{Backoff, RetryOn, RetryPolicy};

/// No wait is longer, whatever the policy multiplies up to.
const LONGEST_DELAY: Duration = Duration::from_secs(10 * 60);

/// How long to wait before the attempt that follows the `failures`-th failure in a row; `None`: the
/// error is not worth one, or no attempt is left. What the system asked for (`Retry-After`) is a
/// lower bound.
pub(crate) fn delay_after(
    policy: &RetryPolicy,
    failures: u32,
    error: &ConnectorError,
) -> Option<Duration> {
    if error.kind == ErrorKind::Locked {
        // It has waited for long enough already, and has not had its attempt.
        return Some(Duration::ZERO);
    }
    if failures >= policy.max_attempts.get() || !is_worth_a_retry(policy, error) {
        return None;
    }
    let asked = match error.kind {
        ErrorKind::Unavailable { retry_after, .. } => retry_after.unwrap_or_default(),
        _ => Duration::ZERO,
    };
    let steps = failures.max(1);
    let delay = match policy.backoff {
        Backoff::Constant => Some(policy.delay),
        Backoff::Linear => policy.delay.checked_mul(steps),
        Backoff::Exponential => {
            2u32.checked_pow(steps - 1).and_then(|factor| policy.delay.checked_mul(factor))
        }
    };
    Some(delay.unwrap_or(LONGEST_DELAY).min(LONGEST_DELAY).max(asked))
}

/// As [`delay_after`], for a task.
pub(crate) fn task_delay_after(
    policy: &RetryPolicy,
    failures: u32,
    error: &TaskError,
) -> Option<Duration> {
    match error {
        TaskError::Connector { source, .. } => delay_after(policy, failures, source),
        TaskError::Operator { .. }
        | TaskError::InputLost { .. }
        | TaskError::State { .. }
        | TaskError::CommitLog(_) => None,
    }
}

fn is_worth_a_retry(policy: &RetryPolicy, error: &ConnectorError) -> bool {
    if !error.is_retryable() {
        return false;
    }
    policy.retry_on.is_empty()
        || policy.retry_on.iter().any(|retry_on| match (retry_on, error.kind) {
            (RetryOn::Timeout, ErrorKind::Timeout) => true,
            (RetryOn::Connection, ErrorKind::Unavailable { status: None, .. }) => true,
            (RetryOn::Status(wanted), ErrorKind::Unavailable { status: Some(status), .. }) => {
                *wanted == status
            }
            _ => false,
        })
}

/// Repeats an operation that needs no ledger (describing a source, asking a target) as the policy
/// says. Ends early, with the last error, when asked to stop.
pub(crate) async fn retrying<T, F: Future<Output = Result<T, ConnectorError>>>(
    policy: &RetryPolicy,
    stop: &CancellationToken,
    mut operation: impl FnMut() -> F,
) -> Result<T, ConnectorError> {
    let mut failures = 0;
    loop {
        let error = match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        failures += u32::from(error.kind != ErrorKind::Locked);
        let Some(delay) = delay_after(policy, failures, &error) else { return Err(error) };
        tracing::warn!(%error, ?delay, "retrying");
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(error),
            () = tokio::time::sleep(delay) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use weir_executor::TaskEnd;

    use super::*;

    fn unavailable(status: Option<u16>, retry_after: Option<u64>) -> ConnectorError {
        let retry_after = retry_after.map(Duration::from_secs);
        ConnectorError::new(ErrorKind::Unavailable { retry_after, status }, "no")
    }

    fn policy(backoff: Backoff, retry_on: Vec<RetryOn>) -> RetryPolicy {
        RetryPolicy {
            max_attempts: NonZeroU32::new(4).expect("not zero"),
            delay: Duration::from_secs(2),
            backoff,
            retry_on,
        }
    }

    #[test]
    fn delays_grow_as_the_policy_says_until_no_attempt_is_left() {
        for (backoff, expected) in [
            (Backoff::Constant, [Some(2), Some(2), Some(2), None]),
            (Backoff::Linear, [Some(2), Some(4), Some(6), None]),
            (Backoff::Exponential, [Some(2), Some(4), Some(8), None]),
        ] {
            let policy = policy(backoff, Vec::new());
            let delays = [1, 2, 3, 4]
                .map(|failures| delay_after(&policy, failures, &unavailable(None, None)))
                .map(|delay| delay.map(|delay| delay.as_secs()));
            assert_eq!(delays, expected, "{backoff:?}");
        }
    }

    #[test]
    fn what_the_system_asks_for_is_a_lower_bound() {
        let policy = policy(Backoff::Constant, Vec::new());
        let delay = delay_after(&policy, 1, &unavailable(Some(429), Some(30)));
        assert_eq!(delay, Some(Duration::from_secs(30)));
    }

    #[tokio::test]
    async fn waiting_for_a_lock_is_no_attempt() {
        let policy = RetryPolicy { delay: Duration::ZERO, ..policy(Backoff::Constant, Vec::new()) };
        let mut calls = 0;
        let stop = CancellationToken::new();
        let result: Result<(), _> = retrying(&policy, &stop, || {
            calls += 1;
            let kind = if calls <= 10 { ErrorKind::Locked } else { ErrorKind::Timeout };
            std::future::ready(Err(ConnectorError::new(kind, "no")))
        })
        .await;
        assert_eq!(result.expect_err("it goes on to fail").kind, ErrorKind::Timeout);
        assert_eq!(calls, 10 + 4, "all attempts of the policy were left");
        stop.cancel();
        let locked =
            || std::future::ready(Err::<(), _>(ConnectorError::new(ErrorKind::Locked, "")));
        let result = retrying(&policy, &stop, locked).await;
        assert_eq!(result.expect_err("asked to stop").kind, ErrorKind::Locked);
    }

    #[test]
    fn only_listed_errors_are_retried_when_there_is_a_list() {
        let policy = policy(Backoff::Constant, vec![RetryOn::Timeout, RetryOn::Status(503)]);
        assert!(delay_after(&policy, 1, &unavailable(Some(503), None)).is_some());
        assert!(delay_after(&policy, 1, &ConnectorError::new(ErrorKind::Timeout, "")).is_some());
        assert!(delay_after(&policy, 1, &unavailable(Some(429), None)).is_none());
        assert!(delay_after(&policy, 1, &unavailable(None, None)).is_none());
    }

    /// Whatever the policy says of an error, it says of it after its way from an executor.
    #[test]
    fn failures_on_executors_are_retried_as_they_are_here() {
        let kinds = [
            ErrorKind::Unavailable { retry_after: None, status: None },
            ErrorKind::Unavailable {
                retry_after: Some(Duration::from_secs(30)),
                status: Some(429),
            },
            ErrorKind::Unavailable { retry_after: None, status: Some(503) },
            ErrorKind::Timeout,
            ErrorKind::Locked,
            ErrorKind::Data,
            ErrorKind::Config,
        ];
        let lists = [
            Vec::new(),
            vec![RetryOn::Timeout],
            vec![RetryOn::Connection],
            vec![RetryOn::Status(503), RetryOn::Status(429)],
        ];
        let mut delays = std::collections::BTreeSet::new();
        for kind in kinds {
            let error = || TaskError::Connector {
                node: weir_spec::NodeName::new("orders"),
                source: ConnectorError::new(kind, "no"),
            };
            let redactor = weir_connectors::Redactor::default();
            let end = TaskEnd::from_result(&Err(error()), &redactor);
            let json = serde_json::to_vec(&end).expect("ends are JSON");
            let end: TaskEnd = serde_json::from_slice(&json).expect("ends are read again");
            let arrived = end.into_result().expect_err("it has failed");
            for retry_on in &lists {
                for backoff in [Backoff::Constant, Backoff::Linear, Backoff::Exponential] {
                    let policy = policy(backoff, retry_on.clone());
                    for failures in 1..=policy.max_attempts.get() {
                        let here = task_delay_after(&policy, failures, &error());
                        assert_eq!(task_delay_after(&policy, failures, &arrived), here);
                        delays.insert(here);
                    }
                }
            }
        }
        assert!(delays.len() > 5, "policies differ: {delays:?}");
    }

    #[test]
    fn errors_of_data_and_configuration_are_never_retried() {
        let policy = policy(Backoff::Constant, Vec::new());
        assert!(delay_after(&policy, 1, &ConnectorError::data("bad row")).is_none());
        assert!(delay_after(&policy, 1, &ConnectorError::config("bad url")).is_none());
    }
}
