//! SHA-256 digests in OCI's text form, `sha256:<64 lower-case hex digits>`.
//!
//! In: bytes or text of unknown origin. Out: text that is safe as the name of
//! a file once [`check`] has passed it.

use ring::digest::{Context, SHA256};

use crate::{Error, Result};

/// A digest that is being computed.
#[derive(Clone)]
pub struct Hasher(Context);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> String {
        text(self.0.finish().as_ref())
    }
}

/// The digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    text(ring::digest::digest(&SHA256, bytes).as_ref())
}

pub(crate) fn text(hash: &[u8]) -> String {
    let mut text = String::with_capacity(7 + 2 * hash.len());
    text.push_str("sha256:");
    for byte in hash {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    text
}

/// The 64 hex digits of a well-formed digest.
///
/// # Errors
/// [`Error::BadDigest`] for anything but `sha256:` and 64 lower-case digits.
pub fn check(digest: &str) -> Result<&str> {
    match digest.strip_prefix("sha256:") {
        Some(hex)
            if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) =>
        {
            Ok(hex)
        }
        _ => Err(Error::BadDigest {
            digest: digest.chars().take(100).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_checked() {
        let empty = sha256(b"");
        assert_eq!(
            empty,
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(Hasher::default().finish(), empty);
        assert!(check(&empty).is_ok());
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc",
            &empty.to_uppercase(),
            &empty[..70],
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
