//! Random bytes and their spellings.
//!
//! In: a length. Out: bytes of the system's generator, as hexadecimal digits or
//! base64 where text is wanted.

use std::fmt::Write as _;

use base64::Engine as _;
use ring::rand::{SecureRandom, SystemRandom};

use crate::Error;

/// `length` random bytes.
///
/// # Errors
/// When the system has none.
pub fn random(length: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; length];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// A random token of `bytes` bytes, as twice as many hexadecimal digits.
///
/// # Errors
/// When the system has no random bytes.
pub fn token(bytes: usize) -> Result<String, Error> {
    let mut text = String::with_capacity(bytes * 2);
    for byte in random(bytes)? {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// Base64 with the standard alphabet and padding, on one line.
pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_hexadecimal_and_differ() {
        let one = token(16).unwrap();
        assert_eq!(one.len(), 32);
        assert!(one.chars().all(|c| c.is_ascii_hexdigit()));
        assert_ne!(one, token(16).unwrap());
        assert_eq!(base64(b"ab"), "YWI=");
    }
}
