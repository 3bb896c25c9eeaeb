//! What commands have said.
//!
//! In: a command's output, or a node and a command. Out: its exit code and all of
//! its text, compared with what they must be. Always holds: what hangs in a node is
//! ended, and counts as a failure.

use std::os::unix::process::ExitStatusExt;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::node::Node;

/// What a command has said, both outputs in one.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Self {
        let code = output.status.code();
        Self {
            code: code.unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
            text: format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    /// Of a command in a node that may take so many seconds.
    pub(crate) fn within(node: &Node, seconds: &str, words: &[&str]) -> Result<Self> {
        let mut bounded = vec!["timeout", "--kill-after=5", seconds];
        bounded.extend(words);
        let output = node.command(&bounded)?.stdin(Stdio::null()).output();
        Ok(Self::of(&output.context("starting testnode")?))
    }

    /// The same, of a line whose words are those between spaces.
    pub(crate) fn of_line(node: &Node, seconds: &str, line: &str) -> Result<Self> {
        Self::within(node, seconds, &line.split(' ').collect::<Vec<_>>())
    }

    /// Fails unless it ended with this code and said all of these.
    pub(crate) fn expect(self, code: i32, words: &[&str]) -> Result<Self> {
        let missing: Vec<_> = words
            .iter()
            .filter(|word| !self.text.contains(*word))
            .collect();
        ensure!(
            self.code == code && missing.is_empty(),
            "exit code {} (expected {code}), without {missing:?}: {}",
            self.code,
            self.text
        );
        Ok(self)
    }

    /// The last JSON document in it.
    pub(crate) fn json(&self) -> Result<Value> {
        last_json(&self.text)
    }
}

/// The last JSON document of an output: events may come before it, a line each, and
/// what is no JSON behind it.
pub(crate) fn last_json(text: &str) -> Result<Value> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let last = values.filter_map(Result::ok).last();
    last.with_context(|| format!("there is no JSON in: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expectation_names_code_and_missing_words() {
        let said = || Said {
            code: 3,
            text: "port 6443".into(),
        };
        said().expect(3, &["6443"]).unwrap();
        let Err(error) = said().expect(3, &["pid 7"]) else {
            panic!("accepted")
        };
        assert!(error.to_string().contains("pid 7"), "{error}");
        assert!(said().expect(0, &[]).is_err());
    }

    #[test]
    fn the_last_document_counts() {
        let text = "{\"step\":1}\n{\"state\":\"active\"}\nwarning: slow\n";
        assert_eq!(last_json(text).unwrap()["state"], "active");
        for none in ["", "no JSON"] {
            assert!(last_json(none).is_err(), "{none}");
        }
    }
}
