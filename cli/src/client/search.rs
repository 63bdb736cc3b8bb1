//! Whom to ask next. No I/O.

use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The coordinators that are known, and what each said last.
#[derive(Debug)]
pub(super) struct Search {
    coordinators: Vec<Asked>,
    /// Who is asked now: the one that answered last, while it does.
    current: usize,
    /// Refusals since the last pause.
    refusals: usize,
    pause: Duration,
}

#[derive(Debug)]
struct Asked {
    url: String,
    /// By the user; others come and go as coordinators do.
    is_named: bool,
    said: Option<String>,
}

/// When the next one is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    AtOnce,
    /// All have been asked: a leader has to be found first.
    After(Duration),
}

impl Search {
    /// At least one URL.
    pub(super) fn new(urls: Vec<String>) -> Self {
        let coordinators = urls.into_iter().map(|url| Asked { url, is_named: true, said: None });
        let coordinators = coordinators.collect();
        Self { coordinators, current: 0, refusals: 0, pause: FIRST_PAUSE }
    }

    pub(super) fn url(&self) -> &str {
        &self.coordinators[self.current].url
    }

    /// A new question: what was said to earlier ones is forgotten.
    pub(super) fn begin(&mut self) {
        self.refusals = 0;
        self.pause = FIRST_PAUSE;
        for asked in &mut self.coordinators {
            asked.said = None;
        }
    }

    /// The current one did not answer, or named a leader.
    pub(super) fn refused(&mut self, said: String, leader: Option<String>) -> Next {
        self.coordinators[self.current].said = Some(said);
        self.current = match leader {
            Some(leader) if leader != self.url() => self.position(leader),
            _ => (self.current + 1) % self.coordinators.len(),
        };
        self.refusals += 1;
        if self.refusals < self.coordinators.len() {
            return Next::AtOnce;
        }
        self.refusals = 0;
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Next::After(pause)
    }

    /// A coordinator says who all of them are.
    pub(super) fn learn(&mut self, urls: Vec<String>) {
        if urls.is_empty() {
            return;
        }
        let asked = self.url().to_owned();
        self.coordinators
            .retain(|known| known.is_named || known.url == asked || urls.contains(&known.url));
        for url in urls {
            self.position(url);
        }
        self.current = self.position(asked);
    }

    /// A leader that was not named by the user is remembered.
    fn position(&mut self, url: String) -> usize {
        let known = self.coordinators.iter().position(|asked| asked.url == url);
        known.unwrap_or_else(|| {
            self.coordinators.push(Asked { url, is_named: false, said: None });
            self.coordinators.len() - 1
        })
    }

    pub(super) fn report(&self, waited: Duration) -> String {
        let mut text = format!("no coordinator led the cluster for {} s:", waited.as_secs());
        for Asked { url, said, .. } in &self.coordinators {
            let said = said.as_deref().unwrap_or("was not asked");
            text.push_str(&format!("\n  {url}: {said}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(urls: &[&str]) -> Search {
        Search::new(urls.iter().map(|url| (*url).to_owned()).collect())
    }

    fn no() -> String {
        "not the leader".to_owned()
    }

    #[test]
    fn a_named_leader_is_asked_at_once_even_if_it_was_unknown() {
        let mut search = search(&["a", "b", "c"]);
        assert_eq!(search.refused(no(), Some("c".to_owned())), Next::AtOnce);
        assert_eq!(search.url(), "c");
        assert_eq!(search.refused(no(), Some("d".to_owned())), Next::AtOnce);
        assert_eq!(search.url(), "d");
    }

    #[test]
    fn coordinators_come_and_go_while_those_that_were_named_stay() {
        let mut search = search(&["a", "b"]);
        search.learn(vec!["b".to_owned(), "c".to_owned(), "d".to_owned()]);
        assert_eq!(search.url(), "a", "who is asked now is asked on");
        search.learn(vec!["d".to_owned(), "e".to_owned()]);
        search.learn(Vec::new());
        let mut asked = Vec::new();
        for _ in 0..5 {
            asked.push(search.url().to_owned());
            search.refused(no(), None);
        }
        assert_eq!(asked, ["a", "b", "d", "e", "a"]);
    }

    #[test]
    fn the_next_one_is_asked_when_no_leader_is_named_and_after_a_round_with_growing_pauses() {
        let mut search = search(&["a", "b"]);
        assert_eq!(search.refused(no(), None), Next::AtOnce);
        assert_eq!(search.url(), "b");
        assert_eq!(search.refused(no(), None), Next::After(FIRST_PAUSE));
        assert_eq!(search.url(), "a");
        search.refused(no(), None);
        assert_eq!(search.refused(no(), None), Next::After(FIRST_PAUSE * 2));
    }

    #[test]
    fn two_coordinators_that_name_each_other_are_not_asked_without_pause() {
        let mut search = search(&["a", "b"]);
        assert_eq!(search.refused(no(), Some("b".to_owned())), Next::AtOnce);
        assert_eq!(search.refused(no(), Some("a".to_owned())), Next::After(FIRST_PAUSE));
    }

    #[test]
    fn a_leader_that_names_itself_is_left() {
        let mut search = search(&["a", "b"]);
        search.refused(no(), Some("a".to_owned()));
        assert_eq!(search.url(), "b");
    }

    #[test]
    fn the_report_names_each_coordinator_with_its_last_words() {
        let mut search = search(&["a", "b", "c"]);
        search.refused("stopped".to_owned(), None);
        search.refused("no leader yet".to_owned(), None);
        assert_eq!(
            search.report(Duration::from_secs(30)),
            "no coordinator led the cluster for 30 s:\n  a: stopped\n  b: no leader yet\n  \
             c: was not asked"
        );
    }
}
