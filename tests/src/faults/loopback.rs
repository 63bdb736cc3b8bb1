//! For those who may not make network namespaces: all on loopback, and before each process a proxy that tells by
//! the socket's owner who calls. Packets cannot be lost here: a lossy link is a slow one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;

use super::network::{Network, Place, Trouble};
use super::proxy::{Behaviour, Proxy};

/// What lost packets cost at least, as they are sent again.
const LOSS: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Loopback {
    why: String,
    fronts: BTreeMap<String, (SocketAddr, Proxy)>,
    pids: Arc<Mutex<BTreeMap<String, u32>>>,
    _runtime: Runtime,
}

impl Loopback {
    pub fn new(names: &[String], why: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        // Held until all are chosen, so that all differ.
        let free: Vec<_> = (names.iter())
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free"))
            .collect();
        let fronts = names.iter().zip(&free).map(|(name, free)| {
            let listen = free.local_addr().expect("it is bound");
            let proxy = Proxy::start_on(runtime.handle(), Ipv4Addr::LOCALHOST, listen);
            (name.clone(), (listen, proxy))
        });
        let fronts = fronts.collect();
        Self { why: why.to_owned(), fronts, pids: Arc::default(), _runtime: runtime }
    }
}

impl Network for Loopback {
    fn description(&self) -> String {
        format!("proxies on loopback, not network namespaces ({})", self.why)
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::LOCALHOST
    }

    fn place(&self, name: &str) -> Place {
        let (listen, proxy) = &self.fronts[name];
        Place { listen: *listen, called: proxy.address }
    }

    fn command(&self, _: &str) -> Command {
        Command::new("env")
    }

    fn started(&self, name: &str, pid: u32) {
        lock(&self.pids).insert(name.to_owned(), pid);
    }

    fn trouble(&self, of: &str, with: &[String], trouble: Trouble) {
        for (server, (_, proxy)) in &self.fronts {
            let (of, with) = (of.to_owned(), with.to_vec());
            let (server, pids) = (server.clone(), Arc::clone(&self.pids));
            let to_caller = move |from| {
                let caller = owner(from, &lock(&pids));
                behaviour(trouble, &of, &with, &server, caller.as_deref())
            };
            if trouble == Trouble::Reset {
                proxy.reset_connections(|from| to_caller(from) != Behaviour::default());
            } else {
                proxy.behave_to(Box::new(to_caller));
            }
        }
    }

    fn mend(&self, _: &str) {
        for (_, proxy) in self.fronts.values() {
            proxy.behave(Behaviour::default());
        }
    }
}

/// What a trouble means for the connections of a caller to a server.
fn behaviour(
    trouble: Trouble,
    of: &str,
    with: &[String],
    server: &str,
    caller: Option<&str>,
) -> Behaviour {
    let is_called = server == of && caller.is_some_and(|caller| with.iter().any(|w| w == caller));
    let calls = caller == Some(of) && with.iter().any(|other| other == server);
    if !is_called && !calls {
        return Behaviour::default();
    }
    let none = Behaviour::default();
    match trouble {
        Trouble::Cut => Behaviour { holds_requests: true, holds_answers: true, ..none },
        Trouble::Deaf => Behaviour { holds_requests: is_called, holds_answers: calls, ..none },
        Trouble::Mute => Behaviour { holds_requests: calls, holds_answers: is_called, ..none },
        Trouble::Slow(kilobits) => Behaviour { kilobits_per_second: Some(kilobits), ..none },
        Trouble::Lossy(_) | Trouble::Reset => Behaviour { delay: LOSS, ..none },
        Trouble::Delayed(delay) => Behaviour { delay, ..none },
    }
}

/// Which of these processes has the socket with this address.
fn owner(socket: SocketAddr, pids: &BTreeMap<String, u32>) -> Option<String> {
    let SocketAddr::V4(address) = socket else { return None };
    let hex = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.nth(1)? == hex).then_some(words.nth(7)?)
    })?;
    let link = format!("socket:[{inode}]");
    let has_it = |pid: u32| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|target| target.as_os_str() == link.as_str())
    };
    pids.iter().find(|(_, pid)| has_it(**pid)).map(|(name, _)| name.clone())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn who_owns_a_socket_is_told_by_its_address() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let stream = TcpStream::connect(address).expect("it listens");
        let from = stream.local_addr().expect("it is connected");
        let pids = BTreeMap::from([("init".to_owned(), 1), ("me".to_owned(), std::process::id())]);
        assert_eq!(owner(from, &pids).as_deref(), Some("me"));
        assert_eq!(owner(from, &BTreeMap::new()), None);
    }

    #[test]
    fn who_is_deaf_hears_nothing_whoever_has_called() {
        let with = ["b".to_owned()];
        let to = |server, caller| behaviour(Trouble::Deaf, "a", &with, server, caller);
        let (none, requests) = (Behaviour::default(), true);
        assert_eq!(to("a", Some("b")), Behaviour { holds_requests: requests, ..none });
        assert_eq!(to("b", Some("a")), Behaviour { holds_answers: true, ..none });
        assert_eq!(to("a", Some("c")), none);
        assert_eq!(to("a", None), none, "a client");
        assert_eq!(to("c", Some("b")), none);
    }
}
