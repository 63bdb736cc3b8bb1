//! Whom to call next, and when.

use std::time::Duration;

const SHORTEST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(400);

/// The coordinators, one of which leads.
#[derive(Debug)]
pub(super) struct Peers {
    /// Those that the process was started with. They may have been replaced since, one by one.
    named: Vec<String>,
    /// What a leader has said last.
    told: Vec<String>,
    /// Those that a leader has told of, and then the named ones that are not among them. Until one has: the named
    /// ones, and then those that an earlier process was told of.
    urls: Vec<String>,
    next: usize,
    /// Who is said to lead; called before the others, once.
    leader: Option<String>,
    failures: u32,
    /// The last call was to who was said to lead.
    was_told: bool,
}

impl Peers {
    /// At least one URL.
    pub(super) fn new(named: Vec<String>, kept: Vec<String>) -> Self {
        let others = kept.into_iter().filter(|url| !named.contains(url));
        let urls = named.iter().cloned().chain(others).collect();
        let told = Vec::new();
        Self { named, told, urls, next: 0, leader: None, failures: 0, was_told: false }
    }

    /// A leader says who the coordinators are. Whether that is new.
    pub(super) fn learn(&mut self, told: &[String]) -> bool {
        if told.is_empty() || self.told == told {
            return false;
        }
        self.told = told.to_vec();
        let others = self.named.iter().filter(|url| !told.contains(url));
        self.urls = told.iter().chain(others).cloned().collect();
        self.next = 0;
        true
    }

    /// Whom to call, and how long to wait before it. `jitter` is between 0 and 1.
    pub(super) fn next(&mut self, jitter: f64) -> (String, Duration) {
        let wait = self.wait(jitter);
        self.was_told = self.leader.is_some();
        let url = self.leader.take().unwrap_or_else(|| {
            let url = self.urls[self.next].clone();
            self.next = (self.next + 1) % self.urls.len();
            url
        });
        (url, wait)
    }

    fn wait(&self, jitter: f64) -> Duration {
        // Two that name each other as the leader must not be asked in a circle without a pause.
        let is_told_anew = self.leader.is_some() && !self.was_told;
        if self.failures == 0 || is_told_anew {
            return Duration::ZERO;
        }
        let steps = (self.failures - 1).min(16);
        let wait = SHORTEST_WAIT.saturating_mul(1 << steps).min(LONGEST_WAIT);
        wait.mul_f64(0.5 + jitter / 2.0)
    }

    /// The call has led nowhere; `leader` is whom the coordinator named instead of itself.
    pub(super) fn failed(&mut self, leader: Option<String>) {
        self.failures = self.failures.saturating_add(1);
        self.leader = leader;
    }

    /// A stream to `url` has ended after its welcome: it most likely leads still.
    pub(super) fn ended(&mut self, url: String) {
        self.failures = 1;
        self.leader = Some(url);
        self.was_told = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Peers {
        Peers::new(["a", "b", "c"].map(str::to_owned).to_vec(), Vec::new())
    }

    fn millis((url, wait): (String, Duration)) -> (String, u128) {
        (url, wait.as_millis())
    }

    #[test]
    fn all_are_asked_in_turn_ever_more_slowly() {
        let mut peers = peers();
        let mut asked = Vec::new();
        for _ in 0..8 {
            asked.push(millis(peers.next(1.0)));
            peers.failed(None);
        }
        let waits = [0, 50, 100, 200, 400, 400, 400, 400];
        let urls = ["a", "b", "c", "a", "b", "c", "a", "b"];
        let expected: Vec<_> = urls.map(str::to_owned).into_iter().zip(waits).collect();
        assert_eq!(asked, expected);
    }

    #[test]
    fn coordinators_that_a_leader_tells_of_are_asked_before_those_that_were_named() {
        let mut peers = peers();
        assert!(peers.learn(&["d".to_owned(), "b".to_owned()]));
        assert!(!peers.learn(&["d".to_owned(), "b".to_owned()]), "it is known");
        assert!(!peers.learn(&[]), "a leader of an older version says nothing");
        let mut asked = Vec::new();
        for _ in 0..5 {
            asked.push(peers.next(1.0).0);
            peers.failed(None);
        }
        assert_eq!(asked, ["d", "b", "a", "c", "d"]);
        assert!(peers.learn(&["e".to_owned()]));
        let asked = [(); 2].map(|()| {
            peers.failed(None);
            peers.next(1.0).0
        });
        assert_eq!(asked, ["e", "a"], "those that were removed are forgotten");
    }

    /// Whoever starts it again with other addresses means them.
    #[test]
    fn those_that_an_earlier_process_knew_are_asked_behind_those_that_are_named() {
        let kept = ["d", "b"].map(str::to_owned).to_vec();
        let mut peers = Peers::new(["a", "b"].map(str::to_owned).to_vec(), kept);
        let asked = [(); 4].map(|()| {
            peers.failed(None);
            peers.next(1.0).0
        });
        assert_eq!(asked, ["a", "b", "d", "a"]);
    }

    #[test]
    fn the_last_of_those_that_were_told_can_be_removed() {
        let mut peers = peers();
        assert!(peers.learn(&["d".to_owned(), "e".to_owned()]));
        assert!(peers.learn(&["d".to_owned()]), "the next process must not know it");
        let asked = [(); 4].map(|()| {
            peers.failed(None);
            peers.next(1.0).0
        });
        assert_eq!(asked, ["d", "a", "b", "c"]);
    }

    #[test]
    fn jitter_takes_away_up_to_half_of_the_wait() {
        let mut peers = peers();
        peers.failed(None);
        assert_eq!(millis(peers.next(0.0)), ("a".to_owned(), 25));
    }

    #[test]
    fn the_leader_is_called_at_once_but_not_in_circles() {
        let mut peers = peers();
        let (_, _) = peers.next(1.0);
        peers.failed(Some("l".to_owned()));
        assert_eq!(millis(peers.next(1.0)), ("l".to_owned(), 0));
        peers.failed(Some("m".to_owned()));
        assert_eq!(millis(peers.next(1.0)), ("m".to_owned(), 100));
        peers.failed(None);
        assert_eq!(millis(peers.next(1.0)), ("b".to_owned(), 200));
    }

    #[test]
    fn who_led_is_called_again_first() {
        let mut peers = peers();
        let (url, _) = peers.next(1.0);
        peers.ended(url);
        assert_eq!(millis(peers.next(1.0)), ("a".to_owned(), 50));
        peers.failed(None);
        assert_eq!(millis(peers.next(1.0)), ("b".to_owned(), 100));
    }
}
