//! A cluster of two machines whose pods' packets are encrypted on the way.
//!
//! In: `tests/wireguard`. Out: an error where a text that one pod sends to
//! another can be read on the Ethernet between the machines, or where one that
//! nobody encrypts can't: the latter shows that the reader reads.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use console::Console;
use nix::sys::socket::{
    AddressFamily, IpMembershipRequest, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket,
    sockopt,
};

use super::member::{Member, options};
use super::{Disk, Kept, Link};
use crate::scenario::{IMAGE, Setup, Timeline};

/// What pods tell each other, many times.
const TEXT: &[u8] = b"what-a-pod-tells-another";
/// How many lines of it there are.
const LINES: &str = "10000";
/// Larger than any frame of the machines.
const FRAME: usize = 1 << 16;
/// The first byte of WireGuard's messages says what they are (its protocol).
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;

/// What went over the Ethernet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    frames: usize,
    /// Frames in which [`TEXT`] can be read.
    readable: usize,
    initiations: usize,
    responses: usize,
    /// Messages with something encrypted in them.
    encrypted: usize,
}

impl Seen {
    fn add(&mut self, frame: &[u8]) {
        self.frames += 1;
        self.readable += usize::from(frame.windows(TEXT.len()).any(|part| part == TEXT));
        match wireguard(frame) {
            Some(INITIATION) => self.initiations += 1,
            Some(RESPONSE) => self.responses += 1,
            Some(DATA) => self.encrypted += 1,
            _ => {}
        }
    }
}

/// The kind of WireGuard's message in an Ethernet frame with IPv4 and UDP.
fn wireguard(frame: &[u8]) -> Option<u8> {
    // Addresses, and the type of IPv4.
    let packet = frame.get(12..)?.strip_prefix(&[8, 0])?;
    let length = usize::from(packet.first()? & 15) * 4;
    let is_udp = *packet.get(9)? == 17;
    let datagram = packet.get(length..)?;
    let port = u16::from_be_bytes([*datagram.get(2)?, *datagram.get(3)?]);
    let ours = is_udp && port == spec::WIREGUARD_PORT;
    datagram.get(8).copied().filter(|_| ours)
}

/// Reads what goes over the Ethernet while `act` runs.
fn listen<T>(act: impl FnOnce() -> Result<T>) -> Result<(T, Seen)> {
    let socket = join().context("listening on the machines' Ethernet")?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut seen, mut frame) = (Seen::default(), vec![0; FRAME]);
            loop {
                match socket.recv(&mut frame) {
                    Ok(length) => seen.add(&frame[..length]),
                    // Nothing more came, also of what was on its way.
                    Err(_) if over.load(Ordering::SeqCst) => return seen,
                    Err(_) => {}
                }
            }
        });
        let result = act();
        over.store(true, Ordering::SeqCst);
        let seen = reader.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        Ok((result?, seen))
    })
}

/// A socket that gets a copy of each frame.
fn join() -> io::Result<UdpSocket> {
    let (family, kind) = (AddressFamily::Inet, SockType::Datagram);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // Frames come faster than they are read.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20));
    let group = Link::group();
    bind(socket.as_raw_fd(), &SockaddrIn::from(group))?;
    let request = IpMembershipRequest::new(*group.ip(), Some(Ipv4Addr::LOCALHOST));
    setsockopt(&socket, sockopt::IpAddMembership, &request)?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(socket)
}

/// When the second machine's pods of this test were started.
const STARTED: &str = "kubectl get pods -l 'app in (pods,hosts)' \
    --field-selector=spec.nodeName=machine-2 \
    -o jsonpath='{.items[*].status.containerStatuses[0].state.running.startedAt}'";
/// The half of its key that others know.
const PUBLIC_KEY: &str = "kubectl get node machine-2 \
    -o jsonpath='{.metadata.annotations.flannel\\.alpha\\.coreos\\.com/backend-data}'";

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, kept: &Kept, console: &Console) -> Result<()> {
    let options = options(setup, kept, console)?;
    let timeline = Timeline::new(console);
    let done = |what: &str| timeline.tell(what);
    let disk = Disk::make(console)?;
    let [mut first, mut second] = Member::boot_first(&disk, &options, console)?;
    done("two machines are up");
    first.run(&first.install(), console)?;
    done("the first is a cluster");
    let join = second.join(&mut first)?;
    second.run(&join, console)?;
    done("the second has joined");
    first.must(
        "set -e
         for set in pods hosts; do
             kubectl rollout status daemonset/$set --timeout=10m
         done",
    )?;
    for member in [&mut first, &mut second] {
        keys(member, console)?;
    }

    let key = first.must(PUBLIC_KEY)?;
    let started = first.must(STARTED)?;
    second.reboot()?;
    first.must(&format!(
        "until now=$({STARTED}) && [ $(echo $now | wc -w) = 2 ] &&
             ! echo $now | grep -qE '{}'; do sleep 2; done",
        started.split_whitespace().collect::<Vec<_>>().join("|")
    ))?;
    let now = first.must(PUBLIC_KEY)?;
    ensure!(now != key, "it has the key of before its reboot, {key}");
    done("the second has been rebooted, and has another key");

    for (app, encrypted) in [("hosts", false), ("pods", true)] {
        let (lines, seen) = listen(|| tell(&mut first, app))?;
        console.print(&format!("{app}: {seen:?}"));
        ensure!(lines.trim() == LINES, "{lines:?} lines came");
        ensure!(
            (seen.readable == 0) == encrypted,
            "{app}: {} of {} frames can be read",
            seen.readable,
            seen.frames
        );
        ensure!(
            !encrypted || (seen.initiations > 0 && seen.responses > 0 && seen.encrypted > 100),
            "nothing was encrypted: {seen:?}"
        );
    }
    done("what pods tell each other can't be read between the machines");

    for member in [&mut second, &mut first] {
        member.leave(console)?;
        let left = member.must(
            "ip -brief link | grep -E 'flannel|cni0'; ls -d /var/lib/gravity /run/wireguard; true",
        )?;
        let told = left.lines().filter(|line| !line.contains("No such file"));
        let told: Vec<_> = told.filter(|line| !line.trim().is_empty()).collect();
        ensure!(told.is_empty(), "`leave` has left {told:?}");
    }
    done("nothing is left");
    first.end();
    second.end();
    Ok(())
}

/// A pod of the first node has one of the second send it its text. Returns how
/// many lines came.
fn tell(first: &mut Member, app: &str) -> Result<String> {
    first.must(&format!(
        "set -e
         of() {{ kubectl get pods -l app={app} --field-selector=spec.nodeName=$1 \
                     -o jsonpath={{.items[0].$2}}; }}
         from=$(of machine-2 status.podIP)
         kubectl exec $(of machine-1 metadata.name) -- \
             sh -c \"timeout 60 wget -q -O- http://$from:8080/ | grep -c what-a-pod-tells-another\""
    ))
}

/// The private key is the node's and root's alone; others know the public one.
fn keys(member: &mut Member, console: &Console) -> Result<()> {
    let name = member.name();
    let told = member.must(&format!(
        "set -e
         planet() {{ {IMAGE} exec -- \"$@\"; }}
         planet stat -c '%n %a %u' /run/wireguard /run/wireguard/key
         planet stat -f -c 'on %T' /run/wireguard/key
         ip -brief link show flannel-wg; ip -details link show flannel-wg | grep -o 'mtu [0-9]*'
         test ! -e /run/wireguard"
    ))?;
    console.print(&format!("{name}: {told}"));
    for wanted in [
        "/run/wireguard 700 0",
        "/run/wireguard/key 400 0",
        "on tmpfs",
        "mtu 1420",
    ] {
        ensure!(told.contains(wanted), "{name}: no {wanted:?} in {told}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with a UDP datagram to a port.
    fn frame(port: u16, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45]);
        frame.extend([0; 8]);
        frame.push(17);
        frame.extend([0; 10]);
        frame.extend([0, 0]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(content);
        frame
    }

    #[test]
    fn frames_are_told_apart() {
        let mut seen = Seen::default();
        for frame in [
            frame(8472, &[DATA, 0]),
            frame(51820, &[INITIATION]),
            frame(51820, &[RESPONSE]),
            frame(51820, &[DATA, 9, 9]),
            frame(51820, &[]),
            frame(8080, &[b"x", TEXT].concat()),
            vec![0; 3],
        ] {
            seen.add(&frame);
        }
        let expected = Seen {
            frames: 7,
            readable: 1,
            initiations: 1,
            responses: 1,
            encrypted: 1,
        };
        assert_eq!(seen, expected);
    }
}
