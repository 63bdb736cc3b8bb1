//! Which attempts the batches of a slice are by. Nearly all slices have been committed by one, and a ledger holds very
//! many of them: one takes no memory of its own.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// An attempt and the first of its batches, which reach to the next attempt's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedBy {
    pub from: u64,
    pub attempt: u32,
}

/// In order of their batches. Read as a slice, and a list in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<CommittedBy>", into = "Vec<CommittedBy>")]
pub struct Committers(Kind);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    None,
    One(CommittedBy),
    Several(Vec<CommittedBy>),
}

impl Committers {
    pub(crate) fn push(&mut self, by: CommittedBy) {
        let known = self.iter().copied();
        *self = known.chain([by]).collect::<Vec<_>>().into();
    }
}

impl Deref for Committers {
    type Target = [CommittedBy];

    fn deref(&self) -> &[CommittedBy] {
        match &self.0 {
            Kind::None => &[],
            Kind::One(by) => std::slice::from_ref(by),
            Kind::Several(all) => all,
        }
    }
}

impl From<Vec<CommittedBy>> for Committers {
    fn from(all: Vec<CommittedBy>) -> Self {
        Self(match all.as_slice() {
            [] => Kind::None,
            [by] => Kind::One(*by),
            _ => Kind::Several(all),
        })
    }
}

impl From<Committers> for Vec<CommittedBy> {
    fn from(committers: Committers) -> Self {
        committers.to_vec()
    }
}
