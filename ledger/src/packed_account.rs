//! A slice's row account in a few bytes: a ledger holds one for every task of every run.

use indexmap::IndexMap;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use weir_plan::{NodeCounts, RowAccount, StageId};
use weir_spec::NodeName;

/// A [`RowAccount`]; in JSON it looks like one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedAccount {
    pub rows_written: u64,
    pub checksum: u64,
    /// [`Rest`], encoded; empty for an account without anything else.
    rest: Box<[u8]>,
}

#[derive(Clone, PartialEq, Message)]
struct Rest {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NodeEntry>,
    #[prost(message, repeated, tag = "2")]
    exchanges_read: Vec<ExchangeEntry>,
    #[prost(message, repeated, tag = "3")]
    cursors: Vec<CursorEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeEntry {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(uint64, tag = "2")]
    rows_in: u64,
    #[prost(uint64, tag = "3")]
    rows_out: u64,
    #[prost(uint64, tag = "4")]
    dead_lettered: u64,
    #[prost(uint64, tag = "5")]
    dropped: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ExchangeEntry {
    #[prost(uint32, tag = "1")]
    stage: u32,
    #[prost(uint64, tag = "2")]
    rows: u64,
}

#[derive(Clone, PartialEq, Message)]
struct CursorEntry {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(string, tag = "2")]
    value: String,
}

impl PackedAccount {
    pub fn unpack(&self) -> RowAccount {
        let rest = Rest::decode(self.rest.as_ref()).expect("it was encoded here");
        RowAccount {
            nodes: rest.nodes.into_iter().map(NodeEntry::unpack).collect(),
            exchanges_read: (rest.exchanges_read.into_iter())
                .map(|entry| (StageId(entry.stage), entry.rows))
                .collect(),
            rows_written: self.rows_written,
            checksum: self.checksum,
            cursors: (rest.cursors.into_iter())
                .map(|entry| (NodeName(entry.node), entry.value))
                .collect::<IndexMap<_, _>>(),
        }
    }

    /// Adds the account of another batch.
    pub(crate) fn add(&mut self, other: &RowAccount) {
        let mut sum = self.unpack();
        sum.add(other);
        *self = Self::from(&sum);
    }
}

impl NodeEntry {
    fn pack((node, counts): (&NodeName, &NodeCounts)) -> Self {
        let NodeCounts { rows_in, rows_out, dead_lettered, dropped } = *counts;
        Self { node: node.0.clone(), rows_in, rows_out, dead_lettered, dropped }
    }

    fn unpack(self) -> (NodeName, NodeCounts) {
        let Self { node, rows_in, rows_out, dead_lettered, dropped } = self;
        (NodeName(node), NodeCounts { rows_in, rows_out, dead_lettered, dropped })
    }
}

impl From<&RowAccount> for PackedAccount {
    fn from(account: &RowAccount) -> Self {
        let RowAccount { nodes, exchanges_read, rows_written, checksum, cursors } = account;
        let rest = Rest {
            nodes: nodes.iter().map(NodeEntry::pack).collect(),
            exchanges_read: (exchanges_read.iter())
                .map(|(stage, rows)| ExchangeEntry { stage: stage.0, rows: *rows })
                .collect(),
            cursors: (cursors.iter())
                .map(|(node, value)| CursorEntry { node: node.0.clone(), value: value.clone() })
                .collect(),
        };
        let rest = rest.encode_to_vec().into_boxed_slice();
        Self { rows_written: *rows_written, checksum: *checksum, rest }
    }
}

impl Serialize for PackedAccount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.unpack().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PackedAccount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&RowAccount::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: u64) -> RowAccount {
        let counts = NodeCounts {
            rows_in: number,
            rows_out: u64::MAX - number,
            dead_lettered: 1,
            dropped: 0,
        };
        RowAccount {
            nodes: [(NodeName::new("orders"), counts), (NodeName::new("größe"), counts)].into(),
            exchanges_read: [(StageId(3), number), (StageId(0), 0)].into(),
            rows_written: number,
            checksum: u64::MAX - number,
            cursors: [(NodeName::new("orders"), format!("{number}"))].into(),
        }
    }

    #[test]
    fn nothing_is_lost() {
        for account in [RowAccount::default(), account(0), account(7), account(u64::MAX)] {
            let packed = PackedAccount::from(&account);
            assert_eq!(packed.unpack(), account);
            let json = serde_json::to_value(&packed).expect("JSON");
            assert_eq!(json, serde_json::to_value(&account).expect("JSON"));
            let read: PackedAccount = serde_json::from_value(json).expect("read again");
            assert_eq!(read, packed);
        }
    }

    #[test]
    fn batches_add_up() {
        let batch = |rows| RowAccount {
            nodes: [(
                NodeName::new("orders"),
                NodeCounts { rows_in: rows, ..NodeCounts::default() },
            )]
            .into(),
            rows_written: rows,
            checksum: u64::MAX,
            ..RowAccount::default()
        };
        let mut packed = PackedAccount::from(&batch(2));
        packed.add(&batch(3));
        let mut sum = batch(2);
        sum.add(&batch(3));
        assert_eq!(packed.unpack(), sum);
        assert_eq!((packed.rows_written, packed.checksum), (5, u64::MAX - 1));
    }
}
