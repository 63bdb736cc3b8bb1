//! A TCP proxy that delays, holds and breaks what goes through it, without any rights.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

const CHUNK_BYTES: usize = 16 << 10;
/// On their way in one direction, of one connection: with the chunks' size this bounds the memory.
const CHUNKS: usize = 64;

/// What it does to connections, old and new, until it is told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// Of everything, in both directions.
    pub delay: Duration,
    /// Nothing gets to the server.
    pub holds_requests: bool,
    /// Nothing gets back.
    pub holds_answers: bool,
    /// In each direction of each connection.
    pub kilobits_per_second: Option<u32>,
}

/// Says what happens to the connections of somebody, known by his address.
pub type Rule = Box<dyn Fn(SocketAddr) -> Behaviour + Send + Sync>;

/// Gone when it is dropped, with all connections.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Option<Runtime>,
}

struct Shared {
    rule: Mutex<Rule>,
    connections: Mutex<BTreeMap<u64, Connection>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

struct Connection {
    from: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    reset: Arc<tokio::sync::Notify>,
}

impl Proxy {
    /// Listens on a free port of an address, for who is at `to`.
    pub fn start(listen: Ipv4Addr, to: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let proxy = Self::start_on(runtime.handle(), listen, to);
        Self { _runtime: Some(runtime), ..proxy }
    }

    /// As [`Proxy::start`], sharing the threads of others.
    pub fn start_on(runtime: &Handle, listen: Ipv4Addr, to: SocketAddr) -> Self {
        let listener = runtime.block_on(async {
            TcpListener::bind((listen, 0)).await.expect("a port of the address is free")
        });
        let address = listener.local_addr().expect("it is bound");
        let rule: Rule = Box::new(|_| Behaviour::default());
        let connections = Mutex::default();
        let shared = Arc::new(Shared { rule: Mutex::new(rule), connections });
        runtime.spawn(accept(listener, to, Arc::clone(&shared)));
        Self { address, shared, _runtime: None }
    }

    /// To everybody alike.
    pub fn behave(&self, behaviour: Behaviour) {
        self.behave_to(Box::new(move |_| behaviour));
    }

    pub fn behave_to(&self, rule: Rule) {
        *lock(&self.shared.rule) = rule;
        let rule = lock(&self.shared.rule);
        for connection in lock(&self.shared.connections).values() {
            // It may just have ended.
            let _ = connection.behaviour.send(rule(connection.from));
        }
    }

    /// Breaks the connections of those with such addresses, as a machine does that has started again.
    pub fn reset_connections(&self, is_meant: impl Fn(SocketAddr) -> bool) {
        for connection in lock(&self.shared.connections).values() {
            if is_meant(connection.from) {
                connection.reset.notify_waiters();
            }
        }
    }

    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, to: SocketAddr, shared: Arc<Shared>) {
    let mut number = 0;
    loop {
        // An error is of one connection.
        let Ok((client, from)) = listener.accept().await else { continue };
        number += 1;
        let (behaviour, behaviours) = watch::channel(Behaviour::default());
        let reset = Arc::new(tokio::sync::Notify::new());
        {
            let rule = lock(&shared.rule);
            let _ = behaviour.send(rule(from));
            let connection = Connection { from, behaviour, reset: Arc::clone(&reset) };
            lock(&shared.connections).insert(number, connection);
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            carry(client, to, behaviours, &reset).await;
            lock(&shared.connections).remove(&number);
        });
    }
}

async fn carry(
    client: TcpStream,
    to: SocketAddr,
    behaviours: watch::Receiver<Behaviour>,
    reset: &tokio::sync::Notify,
) {
    let broken = reset.notified();
    tokio::pin!(broken);
    // Counts from now on.
    broken.as_mut().enable();
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        socket.connect(to).await
    };
    let server = tokio::select! {
        connected = connecting => connected,
        () = &mut broken => return abort(&client),
    };
    let Ok(server) = server else { return abort(&client) };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pump(from_client, to_server, behaviours.clone(), |is| is.holds_requests);
    let answers = pump(from_server, to_client, behaviours, |is| is.holds_answers);
    tokio::select! {
        (_, _) = async { tokio::join!(requests, answers) } => {}
        () = broken => {}
    }
}

/// Closes it so that the other side is told that it is broken.
fn abort(stream: &TcpStream) {
    // It may be closed already.
    let _ = stream.set_zero_linger();
}

/// Where one direction goes. Dropped before its end, the connection is broken: the other side is told so.
struct Way {
    /// `None`: it has come to its end.
    to: Option<OwnedWriteHalf>,
}

impl Way {
    async fn write(&mut self, chunk: &[u8]) -> std::io::Result<()> {
        match &mut self.to {
            Some(to) => to.write_all(chunk).await,
            None => Err(std::io::ErrorKind::NotConnected.into()),
        }
    }

    async fn end(&mut self) {
        if let Some(to) = &mut self.to
            && to.shutdown().await.is_ok()
        {
            self.to = None;
        }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            abort(to.as_ref());
            // Dropped as it is, it would end in good order first, and the other side might hear only that.
            to.forget();
        }
    }
}

/// Carries one direction until its end.
async fn pump(
    mut from: OwnedReadHalf,
    to: OwnedWriteHalf,
    mut behaviours: watch::Receiver<Behaviour>,
    is_held: fn(&Behaviour) -> bool,
) {
    let mut way = Way { to: Some(to) };
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let delays = behaviours.clone();
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let at = Instant::now() + delays.borrow().delay;
            if sender.send((at, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, chunk)) = receiver.recv().await {
            sleep_until(at).await;
            if behaviours.wait_for(|behaviour| !is_held(behaviour)).await.is_err() {
                return;
            }
            let kilobits = behaviours.borrow().kilobits_per_second;
            if let Some(kilobits) = kilobits {
                // Bits by kilobits a second are milliseconds.
                let millis = chunk.len() as u64 * 8 / u64::from(kilobits.max(1));
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            if way.write(&chunk).await.is_err() {
                return;
            }
        }
        // The other side may go on speaking.
        way.end().await;
    };
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// Somebody who says what he hears.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let (mut reader, mut writer) = (&stream, &stream);
                    let _ = std::io::copy(&mut reader, &mut writer);
                });
            }
        });
        address
    }

    fn say(stream: &mut std::net::TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(text)?;
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard)?;
        Ok(heard)
    }

    fn connected(proxy: &Proxy) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(proxy.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        stream
    }

    /// What is said is not answered for a while.
    fn hears_nothing(stream: &mut std::net::TcpStream, text: &[u8]) {
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
        let error = say(stream, text).expect_err("nothing comes");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    }

    #[test]
    fn it_carries_delays_holds_and_breaks() {
        let proxy = Proxy::start(Ipv4Addr::LOCALHOST, echo());
        let mut stream = connected(&proxy);
        let large = vec![7; 3 << 20];
        let (mut writer, to_write) = (stream.try_clone().expect("a socket"), large.clone());
        let writing = std::thread::spawn(move || writer.write_all(&to_write));
        let mut heard = vec![0; large.len()];
        stream.read_exact(&mut heard).expect("it is carried");
        writing.join().expect("no panic").expect("it is carried");
        assert!(heard == large);

        proxy.behave(Behaviour { delay: Duration::from_millis(50), ..Behaviour::default() });
        let start = std::time::Instant::now();
        assert_eq!(say(&mut stream, b"slow").expect("it comes"), b"slow");
        assert!(start.elapsed() >= Duration::from_millis(100), "there and back");

        for held in [
            Behaviour { holds_requests: true, ..Behaviour::default() },
            Behaviour { holds_answers: true, ..Behaviour::default() },
        ] {
            proxy.behave(held);
            hears_nothing(&mut stream, b"late");
            proxy.behave(Behaviour::default());
            let mut heard = [0; 4];
            stream.read_exact(&mut heard).expect("nothing was lost");
            assert_eq!(&heard, b"late");
        }

        assert_eq!(proxy.connections(), 1);
        proxy.reset_connections(|_| true);
        let error = say(&mut stream, b"gone").expect_err("it is broken");
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
        assert_eq!(say(&mut connected(&proxy), b"again").expect("it still listens"), b"again");
    }

    #[test]
    fn who_calls_decides_what_happens_and_who_is_not_there_is_refused() {
        let proxy = Proxy::start(Ipv4Addr::LOCALHOST, echo());
        let (mut cut, mut whole) = (connected(&proxy), connected(&proxy));
        let victim = cut.local_addr().expect("a socket");
        proxy.behave_to(Box::new(move |from| Behaviour {
            holds_requests: from == victim,
            ..Behaviour::default()
        }));
        hears_nothing(&mut cut, b"x");
        assert_eq!(say(&mut whole, b"y").expect("it is another"), b"y");

        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = nobody.local_addr().expect("it is bound");
        drop(nobody);
        let proxy = Proxy::start(Ipv4Addr::LOCALHOST, address);
        assert!(say(&mut connected(&proxy), b"z").is_err());
    }
}
