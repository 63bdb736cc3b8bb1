//! An S3 server of a test: moto, in memory. It checks no signatures.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::wait_until;
use crate::foreign;

/// The bucket that every server has.
pub const BUCKET: &str = "weir-tests";
/// Must be in no log and no file.
pub const SECRET: &str = "canary-of-the-object-store";

/// Ends with the test.
#[derive(Debug)]
pub struct S3Server {
    child: Child,
    address: String,
}

impl S3Server {
    pub fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("it is bound").to_string();
        drop(free);
        let (host, port) = address.split_once(':').expect("host and port");
        let child = Command::new(foreign::installed("moto_server"))
            .args(["-H", host, "-p", port])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto starts");
        let mut server = Self { child, address };
        wait_until("the S3 server", || {
            let ended = server.child.try_wait().expect("it is our child");
            assert_eq!(ended, None, "the S3 server has ended");
            TcpStream::connect(&server.address).is_ok()
        });
        let made = server.request("PUT", &format!("/{BUCKET}"));
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        server
    }

    /// What processes need to use it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.address);
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "weir-tests-key"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    /// It takes connections, and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Names of objects below a prefix; the first thousand.
    pub fn objects(&self, prefix: &str) -> Vec<String> {
        let answer = self.request("GET", &format!("/{BUCKET}?list-type=2&prefix={prefix}"));
        let keys = answer.split("<Key>").skip(1);
        keys.filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())).collect()
    }

    fn request(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the server takes connections");
        let host = &self.address;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("the server listens");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the server answers");
        answer
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process has a pid"), signal).expect("it is alive");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // It has ended already, at worst.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
