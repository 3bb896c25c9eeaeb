//! What an error says, with its causes.

use std::error::Error;

/// An error with its causes on one line, `message: cause: cause`. A cause that the text
/// already has, as when an error quotes it, is not told again.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        next = cause.source();
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Told {
        text: &'static str,
        source: Option<Box<Told>>,
    }

    #[test]
    fn all_causes_are_told_once() {
        let told = |text, source: Option<Told>| Told {
            text,
            source: source.map(Box::new),
        };
        let inner = told("no such file", None);
        let quoted = told("reading: no such file", Some(inner));
        let outer = told("starting", Some(quoted));
        assert_eq!(causes(&outer), "starting: reading: no such file");
    }
}
