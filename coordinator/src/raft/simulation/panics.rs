//! Tasks of a simulated host that panic. Tokio tells only whoever waits for such a task, and nobody may: a
//! replication that has ended this way looks like a member that nothing reaches.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

static WATCHING: Once = Once::new();

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From here on the panics of this thread are kept for [`panics`], beside what happens to them anyway.
pub(crate) fn watch_panics() {
    WATCHING.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            // A thread that is ending has no simulation any more.
            let _ = PANICS.try_with(|panics| panics.borrow_mut().push(panicked.to_string()));
            before(panicked);
        }));
    });
    PANICS.take();
}

/// What has panicked since this was asked last.
pub(crate) fn panics() -> Vec<String> {
    PANICS.take()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_task_that_nobody_waits_for_is_noticed_when_it_panics() {
        watch_panics();
        let mut sim = turmoil::Builder::new().build();
        sim.host("member-1", || async {
            drop(tokio::spawn(async { panic!("its invariant does not hold") }));
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        });
        sim.step().expect("the host goes on");
        let found = panics();
        assert!(found[0].contains("its invariant does not hold"), "{found:?}");
        assert!(panics().is_empty());
    }
}
