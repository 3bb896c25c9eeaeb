//! Addresses on the loopback interface.
//!
//! In: an address in CIDR notation. Out: it exists on `lo`, or does not. Asked
//! of the kernel directly (rtnetlink), so it also works on a host without the
//! `ip` program. Doing it twice changes nothing.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::sys::socket::SockProtocol;

use crate::netlink;

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Adds the address to `lo`. Says whether it wasn't there.
pub(crate) fn add(cidr: IpNet) -> io::Result<bool> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match ask(&message(libc::RTM_NEWADDR, flags, cidr)) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        result => result.map(|()| true),
    }
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
    for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        body.extend(netlink::attribute(kind, &octets));
    }
    netlink::message(kind, flags, &body)
}

fn ask(message: &[u8]) -> io::Result<()> {
    netlink::ask(SockProtocol::NetlinkRoute, message)
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
