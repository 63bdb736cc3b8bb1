//! How much one client may ask for: so many requests a second, and so many at once. Each token has its own.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tonic::Status;
use tonic::metadata::MetadataValue;

/// The metadata in which gRPC's servers tell when to come again.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// Tokens come and go: beyond so many, those that have asked for nothing lately are forgotten.
const MOST_NAMES: usize = 1_024;

/// What the holder of one token may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// On the average; as many may come at once.
    pub requests_per_second: NonZeroU32,
    /// Calls that are not over, streams that are being read included.
    pub calls_at_once: NonZeroUsize,
}

impl Default for ClientLimits {
    fn default() -> Self {
        let requests_per_second = NonZeroU32::new(500).expect("it is not zero");
        let calls_at_once = NonZeroUsize::new(256).expect("it is not zero");
        Self { requests_per_second, calls_at_once }
    }
}

/// What clients have asked for.
#[derive(Clone, Debug)]
pub(super) struct Quotas {
    limits: ClientLimits,
    rates: Arc<DefaultKeyedRateLimiter<String>>,
    at_once: Arc<Mutex<HashMap<String, usize>>>,
}

/// A call that is not over, until it is dropped.
#[derive(Debug)]
pub(super) struct Call {
    who: String,
    at_once: Arc<Mutex<HashMap<String, usize>>>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut at_once = self.at_once.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = at_once.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                at_once.remove(&self.who);
            }
        }
    }
}

impl Quotas {
    pub(super) fn new(limits: ClientLimits) -> Self {
        let rates = Arc::new(RateLimiter::keyed(Quota::per_second(limits.requests_per_second)));
        Self { limits, rates, at_once: Arc::default() }
    }

    /// Begins a call, unless there are too many.
    pub(super) fn begin(&self, who: &str) -> Result<Call, Status> {
        if self.rates.len() > MOST_NAMES {
            self.rates.retain_recent();
        }
        let who = who.to_owned();
        if let Err(early) = self.rates.check_key(&who) {
            let rate = self.limits.requests_per_second;
            let wait = early.wait_time_from(DefaultClock::default().now());
            return Err(later(
                format!("token `{who}` asks for more than {rate} requests a second"),
                wait,
            ));
        }
        let mut at_once = self.at_once.lock().unwrap_or_else(PoisonError::into_inner);
        let count = at_once.entry(who.clone()).or_default();
        if *count >= self.limits.calls_at_once.get() {
            let most = self.limits.calls_at_once;
            let text =
                format!("token `{who}` has {most} calls that are not over: end some, e.g. watches");
            return Err(later(text, Duration::from_secs(1)));
        }
        *count += 1;
        drop(at_once);
        Ok(Call { who, at_once: Arc::clone(&self.at_once) })
    }
}

fn later(text: String, wait: Duration) -> Status {
    let millis = wait.as_millis().max(1);
    let mut status = Status::resource_exhausted(format!("{text}; come again in {millis} ms"));
    let hint = MetadataValue::try_from(millis.to_string()).expect("digits are ASCII");
    status.metadata_mut().insert(PUSHBACK, hint);
    status
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn quotas(rate: u32, at_once: usize) -> Quotas {
        Quotas::new(ClientLimits {
            requests_per_second: NonZeroU32::new(rate).expect("it is not zero"),
            calls_at_once: NonZeroUsize::new(at_once).expect("it is not zero"),
        })
    }

    #[test]
    fn who_asks_too_often_is_told_when_to_come_again_and_others_are_served() {
        let quotas = quotas(2, 100);
        let begun: Vec<_> = (0..3).map(|_| quotas.begin("olga")).collect();
        assert!(begun[0].is_ok() && begun[1].is_ok());
        let refused = begun[2].as_ref().expect_err("a third one within a second");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let hint = refused.metadata().get(PUSHBACK).and_then(|hint| hint.to_str().ok());
        let hint: u64 = hint.and_then(|hint| hint.parse().ok()).expect("it is a number");
        assert!((1..=1_000).contains(&hint), "{hint}");
        assert!(quotas.begin("eve").is_ok());
    }

    #[test]
    fn calls_that_are_not_over_count_until_they_are() {
        let quotas = quotas(1_000, 2);
        let (first, second) = (quotas.begin("olga"), quotas.begin("olga"));
        let third = quotas.begin("olga").expect_err("two are not over");
        assert_eq!(third.code(), Code::ResourceExhausted);
        assert!(third.message().contains("`olga` has 2 calls"), "{}", third.message());
        assert!(quotas.begin("eve").is_ok());
        drop(first);
        assert!(quotas.begin("olga").is_ok());
        drop(second);
        assert!(quotas.at_once.lock().expect("nobody panicked").is_empty(), "nothing is left");
    }
}
