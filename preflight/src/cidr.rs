//! Networks, as far as checks need them.

use std::net::IpAddr;

/// A network of either family. Host bits are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// `None` when the prefix is too long for the address.
    pub(crate) fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Self { address, prefix })
    }

    /// Reads CIDR notation.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        Self::new(address.parse().ok()?, prefix.parse().ok()?)
    }

    pub(crate) fn is_everything(self) -> bool {
        self.prefix == 0
    }

    /// Whether an address is in both. Families never overlap.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        let prefix = u32::from(self.prefix.min(other.prefix));
        match (self.address, other.address) {
            (IpAddr::V4(one), IpAddr::V4(two)) => {
                prefix == 0 || (one.to_bits() ^ two.to_bits()) >> (32 - prefix) == 0
            }
            (IpAddr::V6(one), IpAddr::V6(two)) => {
                prefix == 0 || (one.to_bits() ^ two.to_bits()) >> (128 - prefix) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_when_one_holds_the_other() {
        let overlap = |one, two| {
            Network::parse(one)
                .unwrap()
                .overlaps(Network::parse(two).unwrap())
        };
        assert!(overlap("10.0.0.0/8", "10.244.0.0/16"));
        assert!(overlap("10.244.1.2/32", "10.244.0.0/16"));
        assert!(overlap("0.0.0.0/0", "10.0.0.0/8"));
        assert!(overlap("fd00::/8", "fd12::1/128"));
        assert!(!overlap("10.1.0.0/16", "10.2.0.0/16"));
        assert!(!overlap("10.0.0.0/8", "::/0"));
        for bad in [
            "10.0.0.0",
            "10.0.0.0/33",
            "::/129",
            "x/8",
            "10.0.0.0/-1",
            "",
        ] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }
}
