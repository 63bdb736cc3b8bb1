//! Whoever wants to see which facts the members of this thread's world have: each entry as it is applied, and each
//! snapshot as it takes the place of what was there.

use std::cell::RefCell;
use std::path::Path;

use weir_ledger::{Command, Ledger, Response};

/// What a member has just come to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'entry> {
    /// Its folder.
    pub(crate) member: &'entry Path,
    /// Of the last entry that its facts hold.
    pub(crate) index: u64,
    /// How it has come to it.
    pub(crate) by: By<'entry>,
    pub(crate) ledger: &'entry Ledger,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum By<'entry> {
    /// It has applied that entry.
    Entry { commands: &'entry [Command], responses: &'entry [Response] },
    /// It has read its own snapshot, or found none, as it has started.
    Start,
    /// It has received a snapshot.
    Snapshot,
}

type Observer = Box<dyn FnMut(&Seen<'_>)>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// In place of who has observed before.
pub(crate) fn observe(observer: impl FnMut(&Seen<'_>) + 'static) {
    OBSERVER.set(Some(Box::new(observer)));
}

pub(crate) fn sees(seen: &Seen<'_>) {
    OBSERVER.with_borrow_mut(|observer| {
        if let Some(observer) = observer {
            observer(seen);
        }
    });
}
