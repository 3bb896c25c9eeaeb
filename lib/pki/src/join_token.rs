//! Tokens with which nodes join a cluster.
//!
//! In: what a user typed, or nothing. Out: a secret that cluster and node
//! both know. One that we made also says which cluster it is of: `ID.SECRET.FINGERPRINT`,
//! hexadecimal, the last part the SHA-256 of the cluster's authority.
//! The secret itself is never sent: see [`crate::tls::proof`].

use std::fmt;
use std::fmt::Write as _;

use crate::tls::SECRET;
use crate::{Error, token};

/// Bytes of an id.
const ID: usize = 4;
/// Bytes of a secret.
const RANDOM: usize = 16;
/// Characters that a token chosen by a user must at least have: a shorter one could be
/// guessed, at the cluster's address or from a proof that was recorded.
pub const CHOSEN_MIN: usize = 16;
/// Most characters of a token chosen by a user.
pub const CHOSEN_MAX: usize = 128;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names it, also where it may not be shown. Empty for one that a user chose.
    pub id: String,
    /// What must be known.
    pub secret: String,
    /// SHA-256 of the cluster's authority; a chosen token has none.
    pub fingerprint: Option<[u8; SECRET]>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl JoinToken {
    /// A new one for the cluster whose authority has `fingerprint`.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn generate(fingerprint: [u8; SECRET]) -> Result<Self, Error> {
        Ok(Self {
            id: token(ID)?,
            secret: token(RANDOM)?,
            fingerprint: Some(fingerprint),
        })
    }

    /// Reads one. `None` where it is too short or too long to be chosen.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        Self::parse_ours(text).or_else(|| {
            let good = |c: char| c.is_ascii_graphic();
            ((CHOSEN_MIN..=CHOSEN_MAX).contains(&text.len()) && text.chars().all(good)).then(|| {
                Self {
                    id: String::new(),
                    secret: text.to_owned(),
                    fingerprint: None,
                }
            })
        })
    }

    fn parse_ours(text: &str) -> Option<Self> {
        let [id, secret, print] = text.split('.').collect::<Vec<_>>().try_into().ok()?;
        let hex = |text: &str, bytes: usize| {
            text.len() == bytes * 2 && text.bytes().all(|b| b"0123456789abcdef".contains(&b))
        };
        if !hex(id, ID) || !hex(secret, RANDOM) || !hex(print, SECRET) {
            return None;
        }
        let mut fingerprint = [0; SECRET];
        for (byte, index) in fingerprint.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(print.get(index..index + 2)?, 16).ok()?;
        }
        Some(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            fingerprint: Some(fingerprint),
        })
    }

    /// As a user types it.
    pub fn text(&self) -> String {
        let Some(fingerprint) = &self.fingerprint else {
            return self.secret.clone();
        };
        let mut text = format!("{}.{}.", self.id, self.secret);
        for byte in fingerprint {
            // Writing to a string can't fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_keeps_its_secret() {
        let made = JoinToken::generate([7; SECRET]).unwrap();
        assert_eq!(JoinToken::parse(&made.text()), Some(made.clone()));
        assert!(!format!("{made:?}").contains(&made.secret));
        let chosen = JoinToken::parse(" let-me.in.please\n").unwrap();
        assert_eq!(chosen.secret, "let-me.in.please");
        assert_eq!((chosen.id.as_str(), chosen.fingerprint), ("", None));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let (short, long) = ("x".repeat(CHOSEN_MIN - 1), "x".repeat(CHOSEN_MAX + 1));
        for text in ["", &short, "with a space in it", &long] {
            assert_eq!(JoinToken::parse(text), None, "{text}");
        }
    }
}
