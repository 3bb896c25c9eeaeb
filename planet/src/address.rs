//! Addresses on the loopback interface.
//!
//! In: an address in CIDR notation. Out: it exists on `lo`, or does not. Asked
//! of the kernel directly (rtnetlink), so it also works on a host without the
//! `ip` program. Doing it twice changes nothing.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Adds the address to `lo`.
pub(crate) fn add(cidr: IpNet) -> io::Result<()> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    ask(&message(libc::RTM_NEWADDR, flags, cidr))
}

/// Removes the address from `lo`; that it isn't there is fine.
pub(crate) fn remove(cidr: IpNet) -> io::Result<()> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    match ask(&message(libc::RTM_DELADDR, flags, cidr)) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        result => result,
    }
}

/// A request: `struct nlmsghdr`, `struct ifaddrmsg`, attributes IFA_LOCAL and
/// IFA_ADDRESS.
fn message(kind: u16, flags: i32, cidr: IpNet) -> Vec<u8> {
    let (family, octets) = match cidr.addr() {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![
        u8::try_from(family).unwrap_or_default(),
        cidr.prefix_len(),
        0,
        0,
    ];
    body.extend(LOOPBACK.to_ne_bytes());
    for attribute in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        let length = u16::try_from(4 + octets.len()).unwrap_or_default();
        body.extend(length.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(&octets);
    }
    let mut message = Vec::new();
    message.extend(
        u32::try_from(HEADER + body.len())
            .unwrap_or_default()
            .to_ne_bytes(),
    );
    message.extend(kind.to_ne_bytes());
    message.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Sends a request and waits for its acknowledgement.
fn ask(message: &[u8]) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    sendto(
        socket.as_raw_fd(),
        message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // `struct nlmsgerr` follows the header: a negative errno, or 0.
    let code = answer
        .get(HEADER..HEADER + 4)
        .filter(|_| length >= HEADER + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
        .ok_or_else(|| io::Error::other("short answer from rtnetlink"))?;
    match code {
        0 => Ok(()),
        code => Err(Errno::from_raw(-code).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_laid_out_as_the_kernel_reads_it() {
        let cidr = "169.254.20.10/32".parse().unwrap();
        let bytes = message(libc::RTM_NEWADDR, libc::NLM_F_REQUEST, cidr);
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[..4], 40_u32.to_ne_bytes());
        assert_eq!(bytes[16..20], [2, 32, 0, 0]);
        assert_eq!(bytes[28..32], [169, 254, 20, 10]);
    }
}
