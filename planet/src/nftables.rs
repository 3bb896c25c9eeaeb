//! Tables of the kernel's packet filter.
//!
//! In: a family and a name, as `nft` writes them. Out: whether there is such a table,
//! asked of the kernel directly, so that it may be asked often.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netlink;

/// Families that tables of services are of.
const FAMILIES: &[(&str, i32)] = &[
    ("ip", libc::NFPROTO_IPV4),
    ("ip6", libc::NFPROTO_IPV6),
    ("inet", libc::NFPROTO_INET),
];
/// Attribute with the name.
const NAME: u16 = 1;

/// A table by its family and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table<'a> {
    family: i32,
    name: &'a str,
}

impl<'a> Table<'a> {
    /// Reads `ip kube-proxy`.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (family, name) = text.split_once(' ')?;
        let (_, family) = FAMILIES.iter().find(|(known, _)| *known == family)?;
        let named = !name.is_empty() && !name.contains(' ');
        named.then_some(Self {
            family: *family,
            name,
        })
    }

    /// Whether there is such a table.
    pub(crate) fn exists(self) -> io::Result<bool> {
        match netlink::ask(SockProtocol::NetlinkNetFilter, &self.request()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attribute NFTA_TABLE_NAME.
    fn request(self) -> Vec<u8> {
        let kind = libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_GETTABLE;
        let family = u8::try_from(self.family).unwrap_or_default();
        let mut body = vec![family, 0, 0, 0];
        let name = [self.name.as_bytes(), &[0]].concat();
        body.extend(netlink::attribute(NAME, &name));
        let kind = u16::try_from(kind).unwrap_or_default();
        netlink::message(kind, libc::NLM_F_REQUEST, &body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_as_nft_writes_them() {
        let table = Table::parse("ip6 kube-proxy").unwrap();
        assert_eq!((table.family, table.name), (10, "kube-proxy"));
        for wrong in ["kube-proxy", "ipx kube-proxy", "ip ", "ip a b"] {
            assert_eq!(Table::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn request_is_laid_out_as_the_kernel_reads_it() {
        let bytes = Table::parse("ip abc").unwrap().request();
        assert_eq!(bytes.len(), 28);
        assert_eq!(bytes[..4], 28_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 0xa01_u16.to_ne_bytes());
        assert_eq!(bytes[16..20], [2, 0, 0, 0]);
        assert_eq!(bytes[24..], *b"abc\0");
    }

    #[test]
    fn a_table_that_nobody_made_is_not_there() {
        // Who may not look learns nothing.
        let there = Table::parse("ip nobody-made-this").unwrap().exists();
        assert!(!there.unwrap_or_default());
    }
}
