//! Between the processes of a cluster: each has a place of its own, and its links may be in trouble.
//!
//! Two implementations: network namespaces ([`Namespaces`](super::namespaces::Namespaces)), in which packets are
//! really lost, and proxies on loopback ([`Loopback`](super::loopback::Loopback)) for those who may not make
//! namespaces. A test says which it has used.

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use super::loopback::Loopback;
use super::namespaces::Namespaces;

/// What is wrong with the links between one process and some others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing gets through.
    Cut,
    /// Nothing of the others arrives at it.
    Deaf,
    /// Nothing of it arrives at the others.
    Mute,
    /// So many kilobits a second.
    Slow(u32),
    /// So many packets of a hundred are lost.
    Lossy(u32),
    /// Of everything, each way.
    Delayed(Duration),
    /// Connections are broken, and can be made again once it is mended.
    Reset,
}

pub trait Network: Debug {
    /// For people who read what a test prints.
    fn description(&self) -> String;
    /// An address of this process that all places reach.
    fn gateway(&self) -> Ipv4Addr;
    fn place(&self, name: &str) -> Place;
    /// The beginning of a command line: what follows runs at this place.
    fn command(&self, name: &str) -> Command;
    /// Who is at a place now.
    fn started(&self, name: &str, pid: u32);
    /// Until it is mended; there is one trouble at a time.
    fn trouble(&self, of: &str, with: &[String], trouble: Trouble);
    fn mend(&self, of: &str);
}

/// Where a process listens, and how others call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub listen: SocketAddr,
    pub called: SocketAddr,
}

/// With a place for each of these. `WEIR_TEST_NETWORK=proxies` does without namespaces.
pub fn network(names: &[String]) -> Box<dyn Network> {
    let wanted = std::env::var("WEIR_TEST_NETWORK").unwrap_or_default();
    let why = match wanted.as_str() {
        "proxies" => "WEIR_TEST_NETWORK asks for them".to_owned(),
        _ => match Namespaces::make(names) {
            Ok(namespaces) => return Box::new(namespaces),
            Err(why) if wanted == "namespaces" => panic!("no network namespaces: {why}"),
            Err(why) => why,
        },
    };
    Box::new(Loopback::new(names, &why))
}
