//! One question to the kernel over netlink, and its answer.
//!
//! In: a protocol, the kind of message, its body. Out: the whole answer. The
//! programs `ip` and `nft` are not needed for it.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// `struct nlmsghdr` and what follows it.
pub(crate) fn message(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or_default();
    let flags = u16::try_from(flags).unwrap_or_default();
    let mut message = Vec::from(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// One attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    let mut attribute = Vec::from(length.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// Sends a request and waits for its answer, which is an acknowledgement or what was
/// asked for.
///
/// # Errors
/// The kernel's, too.
pub(crate) fn ask(protocol: SockProtocol, message: &[u8]) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), message, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    verdict(answer.get(..length).unwrap_or_default())
}

fn verdict(answer: &[u8]) -> io::Result<()> {
    let short = || io::Error::other("short answer from the kernel");
    let (header, body) = answer.split_at_checked(HEADER).ok_or_else(short)?;
    let error = u16::try_from(libc::NLMSG_ERROR).unwrap_or_default();
    if header[4..6] != error.to_ne_bytes() {
        return Ok(());
    }
    // `struct nlmsgerr`: a negative errno, or 0.
    let code = body.first_chunk().copied().ok_or_else(short)?;
    match i32::from_ne_bytes(code) {
        0 => Ok(()),
        code => Err(Errno::from_raw(-code).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_from_answers() {
        let answer = |kind: i32, code: i32| {
            let kind = u16::try_from(kind).unwrap();
            verdict(&message(kind, 0, &code.to_ne_bytes()))
        };
        answer(libc::NLMSG_ERROR, 0).unwrap();
        answer(0xa00, -libc::ENOENT).unwrap();
        let error = answer(libc::NLMSG_ERROR, -libc::ENOENT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(verdict(&[0; 15]).is_err());
    }

    #[test]
    fn attributes_are_padded_and_say_their_own_length() {
        assert_eq!(attribute(1, b"abcde").len(), 12);
        assert_eq!(attribute(1, b"abcde")[..2], 9_u16.to_ne_bytes());
    }
}
