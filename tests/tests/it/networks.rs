//! The networks of the fault tests do to connections what they say: otherwise those tests would prove nothing.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use weir_tests::faults::loopback::Loopback;
use weir_tests::faults::namespaces::Namespaces;
use weir_tests::faults::network::{Network, Trouble};

/// Says back what it hears.
const ECHO: &str = "
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    def handle_error(self, request, address):
        pass  # a connection was broken: that is what this is for
server = Server((sys.argv[1], int(sys.argv[2])), Echo)
print('ready', flush=True)
server.serve_forever()";

/// For each line, so many bytes there and back over one connection: in milliseconds, or what went wrong. A new
/// connection after a failure.
const CALLER: &str = "
import socket, sys, time
connection = None
print('ready', flush=True)
for line in sys.stdin:
    start = time.monotonic()
    try:
        if connection is None:
            connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.5)
        data = b'x' * int(line)
        connection.sendall(data)
        left = len(data)
        while left:
            part = connection.recv(65536)
            if not part:
                raise ConnectionError('closed')
            left -= len(part)
        print(round((time.monotonic() - start) * 1000), flush=True)
    except OSError as error:
        if connection:
            connection.close()
        connection = None
        print(type(error).__name__, flush=True)";

/// A program at a place, to which one writes and from which one reads lines. Ends with its test.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(network: &dyn Network, name: &str, text: &str, address: SocketAddr) -> Self {
        let mut command = network.command(name);
        command.args(["python3", "-c", text, &address.ip().to_string()]);
        command.arg(address.port().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 can be started");
        network.started(name, child.id());
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut program = Self { child, input, output };
        assert_eq!(program.line(), "ready");
        program
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it writes lines");
        line.trim().to_owned()
    }

    /// How long so many bytes take there and back.
    fn send(&mut self, bytes: usize) -> Result<Duration, String> {
        writeln!(self.input, "{bytes}").expect("it reads lines");
        let line = self.line();
        line.parse().map(Duration::from_millis).map_err(|_| line)
    }

    #[track_caller]
    fn gets_through(&mut self) {
        // The first may meet what is left of a connection that was broken.
        let tried = [self.send(100), self.send(100)];
        assert!(tried[1].is_ok(), "{tried:?}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn does_what_it_says(network: &dyn Network) {
    println!("{}", network.description());
    let place = network.place("server");
    let _server = Program::start(network, "server", ECHO, place.listen);
    let mut near = Program::start(network, "near", CALLER, place.called);
    let mut far = Program::start(network, "far", CALLER, place.called);
    let with = ["far".to_owned()];
    near.gets_through();
    far.gets_through();
    for trouble in [Trouble::Cut, Trouble::Deaf, Trouble::Mute] {
        network.trouble("server", &with, trouble);
        assert!(far.send(100).is_err(), "{trouble:?} of an old connection");
        assert!(far.send(100).is_err(), "{trouble:?} of a new one");
        near.gets_through();
        network.mend("server");
        far.gets_through();
    }

    let delay = Duration::from_millis(100);
    network.trouble("server", &with, Trouble::Delayed(delay));
    far.gets_through();
    let took = far.send(100).expect("it comes");
    assert!(took >= delay * 2 - Duration::from_millis(2), "there and back: {took:?}");
    assert!(near.send(100).expect("it is another") < delay);
    network.mend("server");
    far.gets_through();
    assert!(far.send(100).expect("it comes") < delay);

    network.trouble("server", &with, Trouble::Slow(800));
    // 100,000 bits or more, beside what gets through in one burst.
    let took = far.send(50_000).expect("it comes");
    assert!(took > Duration::from_millis(100), "{took:?}");
    network.mend("server");
    far.gets_through();

    network.trouble("server", &with, Trouble::Reset);
    assert!(far.send(100).is_err(), "its connection was broken");
    network.mend("server");
    far.gets_through();
}

fn names() -> Vec<String> {
    ["server", "near", "far"].map(str::to_owned).to_vec()
}

#[test]
fn proxies_on_loopback_do_what_they_say() {
    does_what_it_says(&Loopback::new(&names(), "they are what is tested"));
}

#[test]
fn network_namespaces_do_what_they_say() {
    match Namespaces::make(&names()) {
        Ok(network) => does_what_it_says(&network),
        Err(why) => assert!(!rustix::process::geteuid().is_root(), "root may make them: {why}"),
    }
}
