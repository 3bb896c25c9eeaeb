//! Units of the manifest.
//!
//! In: text as a person writes it. Out: numbers of a known unit. Printing a
//! value gives text that reads back as the same value.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::decode::Parsed;

/// Text that doesn't have the form of its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ValueError {
    /// What the text should be and what it is.
    pub message: String,
    /// What is allowed.
    pub allowed: String,
}

impl ValueError {
    pub(crate) fn new(message: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            allowed: allowed.into(),
        }
    }
}

const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// An amount of bytes. Units are decimal (kB, MB, GB: powers of 1000) or binary
/// (KiB, MiB, GiB: powers of 1024); without a unit it is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Short text for people, rounded: `3.9GB`.
    pub fn human(self) -> String {
        let mut power = 0;
        let mut unit = 1_u64;
        while power < 6 && self.0 / unit >= 1000 {
            unit *= 1000;
            power += 1;
        }
        // Tenths, rounded down: more must never be shown than there is.
        let tenths = u128::from(self.0) * 10 / u128::from(unit);
        match tenths % 10 {
            0 => format!("{}{}B", tenths / 10, UNITS[power]),
            tenth => format!("{}.{tenth}{}B", tenths / 10, UNITS[power]),
        }
    }
}

impl FromStr for Bytes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || {
            ValueError::new(
                format!("\"{text}\" is not an amount of bytes"),
                "write a number and a unit: B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024)",
            )
        };
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let unit = unit.strip_suffix('b').unwrap_or(&unit);
        let (unit, base) = match unit.strip_suffix('i') {
            Some(unit) if !unit.is_empty() => (unit, 1024_u128),
            _ => (unit, 1000),
        };
        let power = UNITS
            .iter()
            .position(|known| known.eq_ignore_ascii_case(unit))
            .ok_or_else(error)?;
        let scale = base.pow(u32::try_from(power).map_err(|_| error())?);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || whole.len() > 20 || fraction.len() > 9 || fraction.contains('.') {
            return Err(error());
        }
        let whole: u128 = whole.parse().map_err(|_| error())?;
        let places = u32::try_from(fraction.len()).map_err(|_| error())?;
        let fraction: u128 = if places == 0 {
            0
        } else {
            fraction.parse().map_err(|_| error())?
        };
        let bytes = whole * scale + fraction * scale / 10_u128.pow(places);
        u64::try_from(bytes).map(Self).map_err(|_| error())
    }
}

impl fmt::Display for Bytes {
    /// Exact: the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divide = |base: u64| {
            let (mut number, mut power) = (self.0, 0);
            while number != 0 && number % base == 0 && power < 6 {
                number /= base;
                power += 1;
            }
            (number, power)
        };
        match (divide(1000), divide(1024)) {
            ((_, 0), (number, power)) if power > 0 => {
                write!(f, "{number}{}iB", UNITS[power].to_uppercase())
            }
            ((number, power), _) => write!(f, "{number}{}B", UNITS[power]),
        }
    }
}

/// Bytes a second, written as `50MB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bytes = text
            .trim()
            .strip_suffix("/s")
            .and_then(|bytes| bytes.parse::<Bytes>().ok());
        bytes.map(|bytes| Self(bytes.0)).ok_or_else(|| {
            ValueError::new(
                format!("\"{text}\" is not a rate"),
                "write an amount of bytes and /s, such as 50MB/s",
            )
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Bytes(self.0))
    }
}

/// Unix permissions, written in octal as `0755`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(u32);

impl Mode {
    /// The bits, as chmod(2) takes them.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let octal = (3..=5).contains(&text.len())
            && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let bits = u32::from_str_radix(text, 8)
            .ok()
            .filter(|bits| octal && *bits <= 0o7777);
        bits.map(Self).ok_or_else(|| {
            ValueError::new(
                format!("\"{text}\" is not a file mode"),
                "write it in octal in quotes, such as \"0755\"",
            )
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// Ports from `first` to `last`, both included; written as `8080` or `10000-10005`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// Lowest port, at least 1.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl PortRange {
    /// Whether the port is in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(ValueError::new(
                format!("\"{text}\" is not a port or a range of ports"),
                "write a port from 1 to 65535 such as \"8080\", or a range such as \"10000-10005\"",
            )),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

macro_rules! serialize_as_text {
    ($($type:ty),*) => {
        $(impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        })*
    };
}

serialize_as_text!(Bytes, Rate, Mode, PortRange);

const AMOUNT: &str = r"[0-9]{1,20}(\.[0-9]{0,9})?\s*([kKmMgGtTpPeE][iI]?)?[bB]?";

impl Parsed for Bytes {
    fn rules() -> Vec<(&'static str, Json)> {
        vec![
            ("pattern", json!(format!(r"^\s*{AMOUNT}\s*$"))),
            ("examples", json!(["512MB", "4GiB"])),
        ]
    }
}

impl Parsed for Rate {
    fn rules() -> Vec<(&'static str, Json)> {
        vec![
            ("type", json!("string")),
            ("pattern", json!(format!(r"^\s*{AMOUNT}\s*/s\s*$"))),
            ("examples", json!(["50MB/s"])),
        ]
    }
}

impl Parsed for Mode {
    fn rules() -> Vec<(&'static str, Json)> {
        vec![
            ("type", json!("string")),
            ("pattern", json!("^([0-7]{3,4}|0[0-7]{4})$")),
            ("examples", json!(["0755"])),
        ]
    }
}

impl Parsed for PortRange {
    fn rules() -> Vec<(&'static str, Json)> {
        vec![
            ("pattern", json!(r"^\s*[0-9]{1,5}\s*(-\s*[0-9]{1,5}\s*)?$")),
            ("examples", json!(["8080", "10000-10005"])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Option<u64> {
        text.parse::<Bytes>().ok().map(|bytes| bytes.0)
    }

    #[test]
    fn bytes_are_decimal_or_binary() {
        assert_eq!(bytes("32GB"), Some(32_000_000_000));
        assert_eq!(bytes("1.5 kB"), Some(1500));
        assert_eq!(bytes("4GiB"), Some(4 << 30));
        assert_eq!(bytes("512 mib"), Some(512 << 20));
        assert_eq!(bytes("10g"), Some(10_000_000_000));
        assert_eq!(bytes("7"), Some(7));
        assert_eq!(bytes("7B"), Some(7));
        for bad in [
            "",
            "GB",
            "-1GB",
            "1.2.3GB",
            "4XB",
            "4 G B",
            "99999999EB",
            "1e3",
            "0x10",
            "4iB",
        ] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_print_exactly_and_briefly() {
        for number in [
            0,
            1,
            999,
            1000,
            1024,
            1500,
            32_000_000_000,
            4 << 30,
            u64::MAX,
            1_024_000,
        ] {
            assert_eq!(
                bytes(&Bytes(number).to_string()),
                Some(number),
                "{}",
                Bytes(number)
            );
        }
        assert_eq!(Bytes(32_000_000_000).to_string(), "32GB");
        assert_eq!(Bytes(4 << 30).to_string(), "4GiB");
        assert_eq!(Bytes(3_999_999_999).human(), "3.9GB");
        assert_eq!(Bytes(4_000_000_000).human(), "4GB");
        assert_eq!(Bytes(u64::MAX).human(), "18.4EB");
    }

    #[test]
    fn rates_modes_and_ports_have_one_form() {
        assert_eq!("50MB/s".parse(), Ok(Rate(50_000_000)));
        assert_eq!(
            "50MB/s".parse::<Rate>().map(|rate| rate.to_string()),
            Ok("50MB/s".into())
        );
        assert!("50MB".parse::<Rate>().is_err());
        assert_eq!("0755".parse::<Mode>().map(Mode::bits), Ok(0o755));
        assert_eq!(
            "755".parse::<Mode>().map(|mode| mode.to_string()),
            Ok("0755".into())
        );
        for bad in ["0855", "rwx", "", "77777", "+755"] {
            assert!(bad.parse::<Mode>().is_err(), "{bad}");
        }
        assert_eq!(
            "8080".parse(),
            Ok(PortRange {
                first: 8080,
                last: 8080
            })
        );
        assert_eq!(
            "10000-10005".parse(),
            Ok(PortRange {
                first: 10000,
                last: 10005
            })
        );
        for bad in ["0", "65536", "10-9", "1-2-3", "http", "80,81"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }
}
