//! A network namespace for each process, with an address of its own, and a bridge between them all.
//!
//! ```text
//! executor-1 (10.77.N.13) ──veth──┐
//! coordinator-1 (10.77.N.10) ─────┼── bridge weir-N (10.77.N.1): this test, proxies, the target
//! …                               │
//! ```
//!
//! Needs root, `ip` and `tc` (iproute2), `nft` (nftables) and `nsenter` (util-linux). What is lost is lost in the
//! kernel (nft), and what is slow is so there (tbf). Linux' `netem` is not everywhere: a delay is a detour
//! (dnat) through proxies of this process.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::runtime::Runtime;

use super::network::{Network, Place, Trouble};
use super::proxy::{Behaviour, Proxy};

/// Everybody listens there: addresses differ.
const PORT: u16 = 4000;
const FIRST_HOST: u8 = 10;
/// How long packets are answered with a reset, so that every connection has sent some.
const RESET: Duration = Duration::from_millis(400);

#[derive(Debug)]
pub struct Namespaces {
    /// Of the network.
    number: u8,
    nodes: Vec<String>,
    /// For delays: to each node.
    detours: BTreeMap<String, Proxy>,
    _runtime: Runtime,
}

impl Namespaces {
    /// `Err`: why there can be none here.
    pub fn make(names: &[String]) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("this process is not root".to_owned());
        }
        for (program, package) in
            [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")]
        {
            let found = Command::new(program).arg("--version").output();
            found.map_err(|error| format!("{program} ({package}) cannot be started: {error}"))?;
        }
        remove_stale();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let mut made = Self {
            number: claim()?,
            nodes: names.to_vec(),
            detours: BTreeMap::new(),
            _runtime: runtime,
        };
        // From here on it is removed when it is dropped.
        made.connect()?;
        for name in names {
            let to = made.address(name);
            let proxy = Proxy::start_on(made._runtime.handle(), made.gateway(), to);
            made.detours.insert(name.clone(), proxy);
        }
        Ok(made)
    }

    fn connect(&self) -> Result<(), String> {
        let bridge = bridge(self.number);
        ip(&["addr", "add", &format!("{}/24", self.gateway()), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for (index, name) in self.nodes.iter().enumerate() {
            let (space, outside) = (self.space(name), format!("{bridge}-{index}"));
            let address = format!("{}/24", self.address(name).ip());
            ip(&["netns", "add", &space])?;
            ip(&[
                "link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &space,
            ])?;
            ip(&["link", "set", &outside, "master", &bridge, "up"])?;
            ip(&["-n", &space, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn space(&self, name: &str) -> String {
        format!("{}-{name}", bridge(self.number))
    }

    fn index(&self, name: &str) -> usize {
        let index = self.nodes.iter().position(|node| node == name);
        index.unwrap_or_else(|| panic!("no place for {name}"))
    }

    fn address(&self, name: &str) -> SocketAddr {
        let host = FIRST_HOST + u8::try_from(self.index(name)).expect("processes are few");
        (Ipv4Addr::new(10, 77, self.number, host), PORT).into()
    }

    /// Replaces the rules of a node.
    fn rule(&self, name: &str, rules: &str) {
        let space = format!("/run/netns/{}", self.space(name));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={space}")).args(["nft", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("nsenter can be started");
        let mut input = child.stdin.take().expect("it is piped");
        let written = input.write_all(format!("flush ruleset\n{rules}").as_bytes());
        drop(input);
        let status = child.wait().expect("a child can be waited for");
        assert!(written.is_ok() && status.success(), "nft refuses:\n{rules}");
    }

    fn shape(&self, name: &str, discipline: &[&str]) {
        let (space, bridge) = (self.space(name), bridge(self.number));
        let outside = format!("{bridge}-{}", self.index(name));
        for link in [&["-n", space.as_str(), "qdisc"][..], &["qdisc"]] {
            let device = if link.len() > 1 { "eth0" } else { &outside };
            let action = if discipline.is_empty() { "del" } else { "replace" };
            let arguments = [link, &[action, "dev", device, "root"], discipline].concat();
            let done = call("tc", &arguments);
            // There may be nothing to be removed.
            assert!(done.is_ok() || discipline.is_empty(), "{done:?}");
        }
    }

    /// What the two sides send to each other goes through proxies from now on.
    fn detour(&self, of: &str, with: &[String], delay: Duration) {
        let rule = |to: &str| {
            let (address, proxy) = (self.address(to).ip(), self.detours[to].address);
            format!("add rule ip detour out ip daddr {address} tcp dport {PORT} dnat to {proxy}\n")
        };
        let chain = "add table ip detour\n\
                     add chain ip detour out { type nat hook output priority -100; }\n";
        for proxy in self.detours.values() {
            proxy.behave(Behaviour { delay, ..Behaviour::default() });
        }
        for other in with {
            self.rule(other, &format!("{chain}{}", rule(of)));
        }
        let others: String = with.iter().map(|other| rule(other)).collect();
        // What is connected already would not take it.
        let reset = filter(Trouble::Reset, &self.addresses(with));
        self.rule(of, &format!("{chain}{others}{reset}"));
        std::thread::sleep(RESET);
        self.rule(of, &format!("{chain}{others}"));
    }

    fn addresses(&self, names: &[String]) -> Vec<IpAddr> {
        names.iter().map(|name| self.address(name).ip()).collect()
    }
}

impl Network for Namespaces {
    fn description(&self) -> String {
        format!("network namespaces {}-*, 10.77.{}.0/24", bridge(self.number), self.number)
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 1)
    }

    fn place(&self, name: &str) -> Place {
        Place { listen: self.address(name), called: self.address(name) }
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.space(name)));
        command
    }

    fn started(&self, _: &str, _: u32) {}

    fn trouble(&self, of: &str, with: &[String], trouble: Trouble) {
        match trouble {
            Trouble::Slow(kilobits) => {
                let rate = format!("{kilobits}kbit");
                self.shape(of, &["tbf", "rate", &rate, "burst", "32kbit", "latency", "400ms"]);
            }
            Trouble::Delayed(delay) => self.detour(of, with, delay),
            Trouble::Reset => {
                self.rule(of, &filter(trouble, &self.addresses(with)));
                std::thread::sleep(RESET);
            }
            Trouble::Cut | Trouble::Deaf | Trouble::Mute | Trouble::Lossy(_) => {
                self.rule(of, &filter(trouble, &self.addresses(with)));
            }
        }
    }

    fn mend(&self, of: &str) {
        self.shape(of, &[]);
        for name in &self.nodes {
            self.rule(name, "");
        }
        for proxy in self.detours.values() {
            proxy.behave(Behaviour::default());
            // They go straight from now on.
            proxy.reset_connections(|_| true);
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove(self.number);
    }
}

/// Rules for what comes from and goes to these addresses.
fn filter(trouble: Trouble, others: &[IpAddr]) -> String {
    let (arriving, leaving, action) = match trouble {
        Trouble::Cut => (true, true, "drop".to_owned()),
        Trouble::Deaf => (true, false, "drop".to_owned()),
        Trouble::Mute => (false, true, "drop".to_owned()),
        Trouble::Lossy(percent) => (true, true, format!("numgen random mod 100 < {percent} drop")),
        Trouble::Reset => (true, false, "meta l4proto tcp reject with tcp reset".to_owned()),
        Trouble::Slow(_) | Trouble::Delayed(_) => (false, false, String::new()),
    };
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    let others = others.join(", ");
    let mut rules = String::from("add table ip trouble\n");
    for (is_on, hook, side) in [(arriving, "input", "saddr"), (leaving, "output", "daddr")] {
        if is_on {
            rules.push_str(&format!(
                "add chain ip trouble {hook} {{ type filter hook {hook} priority 0; }}\n\
                 add rule ip trouble {hook} ip {side} {{ {others} }} {action}\n"
            ));
        }
    }
    rules
}

fn bridge(number: u8) -> String {
    format!("weir-{number}")
}

/// A number that no other test has: whoever makes the bridge has it.
fn claim() -> Result<u8, String> {
    let mut why = String::new();
    for number in 0..=250 {
        match ip(&["link", "add", "name", &bridge(number), "type", "bridge"]) {
            Ok(()) => {
                let owner = std::process::id().to_string();
                ip(&["link", "set", "dev", &bridge(number), "alias", &owner])?;
                return Ok(number);
            }
            Err(error) if error.contains("File exists") => {}
            Err(error) => return Err(error),
        }
        why = "all numbers are taken".to_owned();
    }
    Err(why)
}

/// A test that was killed has removed nothing.
fn remove_stale() {
    for number in 0..=250 {
        let alias = format!("/sys/class/net/{}/ifalias", bridge(number));
        let Ok(owner) = std::fs::read_to_string(alias) else { continue };
        let owner = owner.trim();
        if !owner.is_empty() && !Path::new("/proc").join(owner).exists() {
            remove(number);
        }
    }
}

fn remove(number: u8) {
    let prefix = format!("{}-", bridge(number));
    let names_in = |folder| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let ours: Vec<String> = names.filter(|name| name.starts_with(&prefix)).collect();
        ours
    };
    for name in names_in("/run/netns") {
        let _ = ip(&["netns", "del", &name]);
    }
    // Those of namespaces that live on for a while, as sockets of dead processes are not closed yet.
    for name in names_in("/sys/class/net") {
        let _ = ip(&["link", "del", &name]);
    }
    let _ = ip(&["link", "del", &bridge(number)]);
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    call("ip", arguments)
}

fn call(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {}: {}", arguments.join(" "), said.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_way_troubles_are_rules_for_one_way() {
        let others = [IpAddr::from([10, 77, 0, 10]), IpAddr::from([10, 77, 0, 11])];
        let deaf = filter(Trouble::Deaf, &others);
        assert!(deaf.contains("ip saddr { 10.77.0.10, 10.77.0.11 } drop"), "{deaf}");
        assert!(!deaf.contains("output"), "{deaf}");
        let mute = filter(Trouble::Mute, &others);
        assert!(mute.contains("ip daddr { 10.77.0.10, 10.77.0.11 } drop"), "{mute}");
        assert!(!mute.contains("input"), "{mute}");
        let cut = filter(Trouble::Cut, &others);
        assert!(cut.contains("saddr") && cut.contains("daddr"), "{cut}");
        assert!(filter(Trouble::Lossy(20), &others).contains("numgen random mod 100 < 20 drop"));
    }
}
