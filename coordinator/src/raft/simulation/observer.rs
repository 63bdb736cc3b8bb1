//! Whoever wants to see each entry as the members of this thread's world apply it.

use std::cell::RefCell;
use std::path::Path;

use weir_ledger::{Command, Ledger, Response};

/// An entry that a member has just applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'entry> {
    /// Its folder.
    pub(crate) member: &'entry Path,
    pub(crate) index: u64,
    pub(crate) commands: &'entry [Command],
    pub(crate) responses: &'entry [Response],
    /// With the entry.
    pub(crate) ledger: &'entry Ledger,
}

type Observer = Box<dyn FnMut(&Seen<'_>)>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// In place of who has observed before.
pub(crate) fn observe(observer: impl FnMut(&Seen<'_>) + 'static) {
    OBSERVER.set(Some(Box::new(observer)));
}

pub(crate) fn has_applied(seen: &Seen<'_>) {
    OBSERVER.with_borrow_mut(|observer| {
        if let Some(observer) = observer {
            observer(seen);
        }
    });
}
