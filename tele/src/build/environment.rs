//! Variables in the text of a manifest.
//!
//! In: `--env` as often as it is given, the environment, a text. Out: the text
//! with `${NAME}` replaced, or the names that have no value. Without `--env`
//! nothing is replaced: scripts and jobs in a manifest have variables of their
//! own.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// What is replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// Values of names that are replaced.
    named: BTreeMap<String, String>,
    /// Whether all others are replaced, too, by what the environment says.
    all: bool,
}

impl Environment {
    /// Reads the arguments of `--env`: `NAME=VALUE`, `NAME` for the value that
    /// the environment has, or nothing for all names. `variable` is the
    /// environment.
    pub(crate) fn new(
        arguments: &[String],
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut environment = Self::default();
        for argument in arguments {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), variable(argument)),
            };
            if name.is_empty() && !argument.contains('=') {
                environment.all = true;
                continue;
            }
            if !is_name(name) {
                bail!("--env={argument}: `{name}` is not the name of a variable");
            }
            let Some(value) = value else {
                bail!("--env={name}: the environment has no variable {name}");
            };
            environment.named.insert(name.to_owned(), value);
        }
        Ok(environment)
    }

    /// Replaces what is to be replaced.
    pub(crate) fn apply(
        &self,
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String> {
        let mut missing = BTreeSet::new();
        let mut replaced = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            replaced.push_str(before);
            let name = after.split_once('}').map(|(name, _)| name);
            let name = name.filter(|name| is_name(name));
            let known = name.filter(|name| self.all || self.named.contains_key(*name));
            let Some(name) = known else {
                replaced.push_str("${");
                rest = after;
                continue;
            };
            match self.named.get(name).cloned().or_else(|| variable(name)) {
                // Lines would no longer be those of the file.
                Some(value) if value.chars().any(char::is_control) => {
                    bail!("--env: the value of {name} has line breaks or control characters")
                }
                Some(value) => replaced.push_str(&value),
                None => drop(missing.insert(name)),
            }
            rest = &after[name.len() + 1..];
        }
        replaced.push_str(rest);
        if !missing.is_empty() {
            let names = Vec::from_iter(missing).join(", ");
            bail!(
                "--env: the environment has no {names}: set it, or name with --env=NAME what is to be replaced"
            );
        }
        Ok(replaced)
    }

    /// Whether nothing is replaced.
    pub(crate) fn is_empty(&self) -> bool {
        !self.all && self.named.is_empty()
    }
}

/// The environment of this process. What is no text is not there.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<String> {
        match name {
            "VERSION" => Some("1.2.3".into()),
            "EMPTY" => Some(String::new()),
            "LINES" => Some("a\nb: c".into()),
            _ => None,
        }
    }

    fn apply(arguments: &[&str], text: &str) -> Result<String, String> {
        let arguments: Vec<_> = arguments.iter().map(|one| (*one).to_owned()).collect();
        Environment::new(&arguments, &variable)
            .and_then(|environment| environment.apply(text, &variable))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_is_named_is_replaced_unless_all_is() {
        let text = "v: ${VERSION}, ${EMPTY}, ${OTHER} $VERSION ${VERSION ${a b} ${";
        assert_eq!(apply(&[], text).unwrap(), text);
        assert_eq!(
            apply(&["VERSION"], text).unwrap(),
            "v: 1.2.3, ${EMPTY}, ${OTHER} $VERSION ${VERSION ${a b} ${"
        );
        assert_eq!(
            apply(&["", "OTHER=${VERSION}=x"], text).unwrap(),
            "v: 1.2.3, , ${VERSION}=x $VERSION ${VERSION ${a b} ${"
        );
        assert!(apply(&[""], text).unwrap_err().contains("has no OTHER"));
        assert!(
            apply(&["OTHER"], "")
                .unwrap_err()
                .contains("no variable OTHER")
        );
        assert!(
            apply(&["LINES"], "${LINES}")
                .unwrap_err()
                .contains("line breaks")
        );
        for wrong in ["a-b", "a b=1", "=1"] {
            assert!(apply(&[wrong], "").is_err(), "{wrong}");
        }
    }
}
