//! Arithmetic of networks.
//!
//! In: CIDRs as text. Out: addresses and parts of them, `None` where the text
//! is no CIDR or holds too few. Pure.

use std::net::{IpAddr, Ipv4Addr};

/// A network in CIDR notation; IPv4 until dual stack is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

impl Cidr {
    /// Reads `a.b.c.d/n`. Bits below the prefix must be zero.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let base = u32::from(address.parse::<Ipv4Addr>().ok()?);
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| (1..=32).contains(prefix))?;
        let cidr = Self { base, prefix };
        (base & !cidr.mask() == 0).then_some(cidr)
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }

    /// Length of the prefix in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether both have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        self.base & mask == other.base & mask
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(v4) if u32::from(v4) & self.mask() == self.base)
    }

    /// The `index`th part of `prefix` bits.
    pub fn part(self, prefix: u8, index: u32) -> Option<String> {
        let bits = prefix.checked_sub(self.prefix)?;
        if prefix > 32 || u64::from(index) >= 1_u64 << bits {
            return None;
        }
        let base = self.base + (index << (32 - u32::from(prefix)));
        Some(format!("{}/{prefix}", Ipv4Addr::from(base)))
    }
}

/// The `n`th address of a network.
pub(crate) fn nth_address(cidr: &str, n: u32) -> Option<IpAddr> {
    let cidr = Cidr::parse(cidr)?;
    let address = IpAddr::V4(Ipv4Addr::from(cidr.base.checked_add(n)?));
    cidr.contains(address).then_some(address)
}

/// The first address of a network, which the `kubernetes` Service has.
pub(crate) fn first_address(cidr: &str) -> Option<IpAddr> {
    nth_address(cidr, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_network_are_disjoint_and_end() {
        let pods = Cidr::parse("10.244.0.0/16").unwrap();
        assert_eq!(pods.part(24, 0).unwrap(), "10.244.0.0/24");
        assert_eq!(pods.part(24, 255).unwrap(), "10.244.255.0/24");
        assert_eq!(pods.part(24, 256), None);
        assert_eq!(pods.part(8, 0), None);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "10.0.0.0",
            "10.0.0.0/0",
            "10.0.0.0/33",
            "10.0.0.1/24",
            "x/8",
            "::/64",
            "",
        ] {
            assert_eq!(Cidr::parse(text), None, "{text}");
        }
    }

    #[test]
    fn overlaps_are_seen_both_ways() {
        let [a, b, c] =
            ["10.0.0.0/8", "10.96.0.0/12", "192.168.0.0/16"].map(|t| Cidr::parse(t).unwrap());
        assert!(a.overlaps(b) && b.overlaps(a));
        assert!(!a.overlaps(c) && !c.overlaps(b));
        assert!(b.contains("10.96.0.1".parse().unwrap()));
        assert!(!b.contains("10.112.0.0".parse().unwrap()));
    }

    #[test]
    fn addresses_stay_inside_their_network() {
        assert_eq!(first_address("10.100.0.0/16"), "10.100.0.1".parse().ok());
        assert_eq!(nth_address("10.0.0.0/30", 4), None);
    }
}
